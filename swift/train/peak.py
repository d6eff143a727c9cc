"""The fastest matrix product of this machine, measured: what a run's own speed is held against (MFU).

Promises: takes a fraction of a second, once per machine, dtype and number of threads; later runs read it from the
cache. It is what torch reaches here, not what a data sheet says.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import time
from pathlib import Path

import torch

from swift import runs
from swift.errors import ResourceError
from swift.hub.cache import cache_dir

BUDGET_S = 0.25
SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
LONG_S = 0.05  # a product that takes this long isn't followed by a larger one


@functools.cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a product of square matrices; None on devices that aren't measured."""
    if device.type not in SIZES:
        return None
    path = cache_dir("matmul_peak.json")
    known = _read(path)
    key = f"{_name_of(device)}, {dtype}, torch {torch.__version__}"
    if key not in known:
        known[key] = _measure(device, dtype)
        with contextlib.suppress(OSError, ResourceError):  # the next run measures again
            path.parent.mkdir(parents=True, exist_ok=True)
            runs.write_json(path, known)
    return known[key]


def _read(path: Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _measure(device: torch.device, dtype: torch.dtype) -> float:
    best, end = 0.0, time.monotonic() + BUDGET_S
    for size in SIZES[device.type]:
        a, b = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        _seconds(a, b, out)  # the first call prepares
        least = min(_seconds(a, b, out) for _ in range(3))
        best = max(best, 2 * size**3 / least)
        if least > LONG_S or time.monotonic() > end:
            break
    while time.monotonic() < end:
        best = max(best, 2 * len(a) ** 3 / _seconds(a, b, out))
    return best


def _seconds(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    began = time.perf_counter()
    torch.mm(a, b, out=out)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - began
