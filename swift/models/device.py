"""Which device computes, in which dtype it is at home, and how much memory it has left.

Promises: the choice follows what torch can see, so CUDA_VISIBLE_DEVICES (and ASCEND_RT_VISIBLE_DEVICES) count. Knows
nothing of models.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swift.hub.resources import available_memory as main_memory

CARDS = ("cuda", "npu", "xpu")  # kinds with a memory of their own, and torch modules that tell of it
BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 twice, then Arm's name in /proc/cpuinfo
_CPU_FACT = re.compile(r"^(model name|flags|Features)\s*:\s*(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    """`kind` is cuda, npu, xpu, mps or cpu; `index` this process's card (its LOCAL_RANK under torchrun).

    `bf16_fast`: the hardware multiplies in bfloat16. `fp8`: it multiplies in FP8. `count`: visible devices of that
    kind.
    """

    kind: str
    name: str
    bf16_fast: bool
    fp8: bool = False
    index: int = 0
    count: int = 1

    @property
    def torch_name(self) -> str:
        """What `tensor.to()` takes: `cuda:0`, `npu:1`, `mps`, `cpu`."""
        return f"{self.kind}:{self.index}" if self.kind in CARDS else self.kind

    @property
    def dtype(self) -> str:
        """The dtype to compute in when nobody asked for another."""
        if self.bf16_fast:
            return "bfloat16"
        return "float16" if self.kind == "cuda" else "float32"

    @property
    def dtype_why(self) -> str:
        if self.bf16_fast:
            return f"{self.name} computes fast in bfloat16"
        if self.kind == "cuda":
            return f"{self.name} has no fast bfloat16"
        return f"{self.name} has no fast bfloat16, so float32"

    def __str__(self) -> str:
        return f"{self.torch_name} ({self.name})" if self.kind != "cpu" else f"cpu ({self.name})"

    def free_memory(self) -> int | None:
        """Bytes that can still be allocated on this device; None where that can't be asked."""
        if self.kind in CARDS:
            return getattr(torch, self.kind).mem_get_info(self.index)[0]
        return main_memory()  # mps shares the main memory


def pick_device(use_cpu: bool = False) -> Device:
    """cuda, else npu, else xpu, else mps, else cpu; `use_cpu` forces the cpu."""
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if not use_cpu:
        if torch.cuda.is_available():
            return _cuda(index)
        if _npu_available():
            name = torch.npu.get_device_name(index)
            return Device("npu", name, bf16_fast=True, index=index, count=torch.npu.device_count())
        if torch.xpu.is_available():
            name = torch.xpu.get_device_name(index)
            return Device("xpu", name, bf16_fast=True, index=index, count=torch.xpu.device_count())
        if torch.backends.mps.is_available():
            return Device("mps", "Apple GPU", bf16_fast=True)
    return _cpu()


def cards() -> list[Any]:
    """torch's modules of the kinds of cards that are here: their memory, their random generators."""
    modules = (getattr(torch, kind, None) for kind in CARDS)  # torch.npu is there once torch_npu is imported
    return [module for module in modules if module is not None and module.is_available()]


def _cuda(index: int) -> Device:
    capability = torch.cuda.get_device_capability(index)
    return Device(
        "cuda",
        torch.cuda.get_device_name(index),
        bf16_fast=capability >= BF16_CAPABILITY,
        fp8=capability >= FP8_CAPABILITY,
        index=index,
        count=torch.cuda.device_count(),
    )


def _npu_available() -> bool:
    """Ascend's torch_npu adds `torch.npu` when it is imported."""
    try:
        import torch_npu  # noqa: F401
    except ImportError:
        return False
    return torch.npu.is_available()


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Device:
    """The main processor. Where /proc/cpuinfo can't be read (macOS, Windows), bfloat16 is taken to be slow."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Device("cpu", platform.processor() or platform.machine(), bf16_fast=False)
    facts = dict(_CPU_FACT.findall(text))
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name") or platform.machine()
    return Device("cpu", name, bf16_fast=bool(flags & BF16_FLAGS))
