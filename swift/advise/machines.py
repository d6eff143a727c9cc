"""The devices that a plan is made for: this machine's, found without torch, or one named from the table of GPUs.

Promises: `parse_gpu('RTX 4090 x2')` and `this_machine()` both give a Machine. Knows nothing of what other programs
hold on a named GPU; on this machine free memory is asked for. Figures of speed are makers' peaks, scaled by what
training usually reaches.
"""

from __future__ import annotations

import difflib
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import UsageError
from swift.hub.resources import available_memory

GIB = 1 << 30
_COUNT = re.compile(
    r"^(?:(?P<before>\d+)\s*[x*×]\s*)?(?P<name>.+?)(?:(?:(?<=[\d\s])x|\s*[*×])\s*(?P<after>\d+))?$", re.IGNORECASE
)
_MEMORY = re.compile(r"^(?P<size>\d+(?:\.\d+)?)\s*(?:GB|GiB|G)$", re.IGNORECASE)
CPU_BANDWIDTH = 25.0  # GB/s of one socket's main memory that a program gets
# flops per core and cycle in float32: two fused multiply-adds of the vector's width
FLOPS_PER_CYCLE = {"avx512f": 32, "avx2": 32, "avx": 16, "asimd": 16}
BF16_GAIN = {"amx_bf16": 8.0, "avx512_bf16": 2.2, "bf16": 2.0}


@dataclass(frozen=True)
class Machine:
    """`count` equal devices of `memory` usable bytes each; `half`, `single`: peak FLOP/s in 16 and 32 bits;
    `bandwidth`: bytes/s. `host`: bytes of main memory free beside them, None where that isn't known.
    """

    name: str
    kind: str
    memory: int
    half: float
    single: float
    bandwidth: float
    count: int = 1
    bf16: bool = True
    host: int | None = None

    @property
    def title(self) -> str:
        return self.name if self.count == 1 else f"{self.count} x {self.name}"

    @property
    def dtype(self) -> str:
        """The dtype in which this device is at home."""
        if self.bf16:
            return "bfloat16"
        return "float16" if self.kind == "cuda" else "float32"


@functools.cache
def gpu_table() -> dict[str, dict[str, Any]]:
    """Name -> facts, as gpus.toml has them."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((Path(__file__).parent / "gpus.toml").read_text(encoding="utf-8"))


def parse_gpu(text: str) -> Machine:
    """`RTX 4090`, `2x4090`, `A100 80GB x8`, or a size alone (`24GB`). UsageError, with the nearest names, for
    anything else.
    """
    match = _COUNT.match(" ".join(text.split()))
    name = match["name"].strip() if match else text
    count = int((match and (match["before"] or match["after"])) or 1)
    size = _MEMORY.match(name)
    if count < 1:
        raise UsageError("there must be at least one GPU", where=f"--gpu {text!r}", fix="--gpu 'RTX 4090 x2'")
    if size:
        memory = float(size["size"])
        return Machine(f"a GPU of {memory:g} GB", "cuda", int(memory * GIB), 100e12, 25e12, 800e9, count)
    found = _lookup(name)
    if found is None:
        near = difflib.get_close_matches(name.upper(), [n.upper() for n in gpu_table()], n=3, cutoff=0.3)
        names = [n for n in gpu_table() if n.upper() in near]
        fix = f"did you mean {' or '.join(names)}?" if names else "a name like 'RTX 4090', or its memory: --gpu 24GB"
        raise UsageError(f"no such GPU in the table: {name}", where="--gpu", fix=fix)
    return _machine(found, count)


def _machine(name: str, count: int = 1) -> Machine:
    facts = gpu_table()[name]
    half = facts["half"] * 1e12
    return Machine(
        name,
        facts.get("kind", "cuda"),
        int(facts["memory"] * GIB),
        half,
        half / 4,
        facts["bandwidth"] * 1e9,
        count,
        facts.get("bf16", True),
    )


def _key(name: str) -> str:
    return re.sub(
        r"nvidia|geforce|tesla|amd|instinct|graphics|sxm\d?|hbm\w*|ampere|ada generation|gib|gb|[^a-z0-9]",
        "",
        name.lower(),
    )


def _lookup(name: str) -> str | None:
    """The table's name for a GPU as drivers and people call it: exact, else the longest entry that it contains or
    completes.
    """
    wanted = _key(name)
    keys = {_key(known): known for known in gpu_table()}
    if wanted in keys:
        return keys[wanted]
    bare = wanted.removeprefix("rtx")
    shortened = {key.removeprefix("rtx"): known for key, known in keys.items()}
    if bare in shortened:
        return shortened[bare]
    longer = sorted((key for key in shortened if bare and key.startswith(bare)), key=len)
    if longer and bare[-1:].isdigit():
        return shortened[longer[-1]] if bare in ("a100", "v100") else shortened[longer[0]]
    inside = sorted((key for key in keys if len(key) > 3 and key in wanted), key=len)
    return keys[inside[-1]] if inside else None


def fitting_gpus(needed: int) -> list[str]:
    """Names of GPUs with at least `needed` bytes, the smallest first."""
    table = sorted(gpu_table().items(), key=lambda item: (item[1]["memory"], item[1]["half"]))
    return [name for name, facts in table if facts["memory"] * GIB * 0.97 >= needed]


def this_machine() -> Machine:
    """The accelerators that this process may use, as nvidia-smi lists them, else the processor. Takes some ten
    milliseconds.
    """
    gpus = _visible(nvidia_gpus())
    if gpus:
        name, _, free = min(gpus, key=lambda gpu: gpu[2])
        known = _lookup(name)
        base = _machine(known) if known else Machine(name, "cuda", free, 100e12, 25e12, 800e9)
        host = available_memory()
        return Machine(name, "cuda", free, base.half, base.single, base.bandwidth, len(gpus), base.bf16, host)
    return cpu_machine()


def nvidia_gpus() -> list[tuple[str, int, int]]:
    """(name, total bytes, free bytes) of each NVIDIA GPU; empty where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") >= 2]
    return [(row[0], int(row[1]) << 20, int(row[2]) << 20) for row in rows if row[1].isdigit() and row[2].isdigit()]


def _visible(gpus: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What CUDA_VISIBLE_DEVICES leaves; names of devices (UUIDs) count as one each."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    if any(word == "-1" for word in words):
        words = words[: words.index("-1")]
    if not all(word.isdigit() for word in words):
        return gpus[: len(words)]
    return [gpus[int(word)] for word in words if int(word) < len(gpus)]


def uses_glibc() -> bool:
    """Whether tensors on the CPU come from glibc's allocator with its usual thresholds."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    other = any(name in preloaded for name in ("jemalloc", "tcmalloc", "mimalloc"))
    fixed = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    small = fixed.isdigit() and int(fixed) <= 1 << 20
    return platform.libc_ver()[0] == "glibc" and not other and not small


def cpu_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The processor: peak from its vector units and clock, memory from what is available."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    facts = dict(re.findall(r"^(model name|flags|Features|cpu MHz)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    hertz = float(facts.get("cpu MHz") or 2500) * 1e6
    cores = len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1
    single = cores * hertz * next((n for flag, n in FLOPS_PER_CYCLE.items() if flag in flags), 8)
    gain = next((g for flag, g in BF16_GAIN.items() if flag in flags), None)
    memory = available_memory() or 0
    name = facts.get("model name", "this CPU")
    return Machine(
        f"CPU ({name}, {cores} cores)",
        "cpu",
        memory,
        single * (gain or 0.5),
        single,
        CPU_BANDWIDTH * 1e9,
        1,
        gain is not None,
    )
