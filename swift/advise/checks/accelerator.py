"""PyTorch, the GPU and the driver: do they fit, how much memory is free, can the GPUs talk to one another.

Promises: PyTorch's facts come from its version file, so it is imported (in a child process) only where there is a GPU
to ask about or where something else stands in its place.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from swift.advise.checks.imports import broken, is_installed, try_import
from swift.advise.checks.packages import shadowed
from swift.advise.finding import FAIL, OK, WARN, Finding
from swift.advise.machines import nvidia_gpus
from swift.hub.resources import human_bytes

TORCH_FACTS = (
    "dict(available=module.cuda.is_available(), count=module.cuda.device_count(), "
    "arches=module.cuda.get_arch_list(), "
    "capability=[list(module.cuda.get_device_capability(i)) for i in range(module.cuda.device_count())])"
)
INSTALL_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu{cuda}"
WHEELS = ("118", "126", "128", "130")


def torch_versions() -> dict[str, str | None]:
    """`__version__` and `cuda` as torch/version.py states them; empty when torch isn't installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "version.py"
    if not path.is_file():
        return {}
    found: dict[str, str | None] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):
            found[target.id] = node.value.value
    return found


def driver() -> tuple[str, str] | None:
    """(driver version, newest CUDA version that it runs), or None where there is no nvidia-smi that works."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"Driver Version:\s*([\d.]+)", done.stdout)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", done.stdout)
    return (version[1], cuda[1]) if version and cuda else None


def has_gpu() -> bool:
    return bool(nvidia_gpus())


def torch_and_driver() -> list[Finding]:
    """Is PyTorch there, is it a build for this GPU, and is the driver new enough for it?"""
    if not is_installed("torch"):
        return [Finding("torch", FAIL, "is not installed", "pip install torch")]
    versions, gpus, seen = torch_versions(), nvidia_gpus(), driver()
    result = None
    if gpus or shadowed("torch") or not versions.get("__version__"):
        result = try_import("torch", TORCH_FACTS)
        if result.error:
            return [broken("torch", result)]
    version, cuda = versions.get("__version__") or result.version, versions.get("cuda")
    if not gpus:
        return [_without_gpu(version, cuda, seen)]
    if cuda is None:
        what = f"{version} is a build without CUDA, and there is a GPU ({gpus[0][0]})"
        return [Finding("torch", FAIL, what, _install(seen))]
    if seen and _number(cuda)[0] > _number(seen[1])[0]:
        what = f"{version} is built for CUDA {cuda}; driver {seen[0]} runs CUDA {seen[1]} at most"
        return [Finding("torch", FAIL, what, f"update the driver, or {_install(seen)}")]
    return [*_usable(version, cuda, result.extra, seen), *_memory(gpus)]


def _without_gpu(version: str, cuda: str | None, seen: tuple[str, str] | None) -> Finding:
    if sys.platform.startswith("linux") and Path("/proc/driver/nvidia").exists() and seen is None:
        fix = "reinstall the NVIDIA driver; nvidia-smi must list the GPU (in a container: start it with --gpus all)"
        return Finding(
            "torch", FAIL, f"{version}: the NVIDIA kernel module is loaded, but nvidia-smi shows no GPU", fix
        )
    kind = f"built for CUDA {cuda}, and there is no NVIDIA GPU" if cuda else "a CPU build"
    return Finding("torch", OK, f"{version}, {kind}: computing on the CPU")


def _usable(version: str, cuda: str, facts, seen) -> list[Finding]:
    if not facts["available"]:
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
            return [Finding("torch", WARN, "CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")]
        return [
            Finding("torch", FAIL, f"{version} can't use the GPU (torch.cuda.is_available() is False)", _install(seen))
        ]
    findings = []
    for index, (major, minor) in enumerate(facts["capability"]):
        arches = [tuple(int(x) for x in (a[3:-1], a[-1])) for a in facts["arches"] if re.fullmatch(r"sm_\d{2,3}", a)]
        if (
            arches
            and not any(a == major and b <= minor for a, b in arches)
            and not any(a.startswith("compute") for a in facts["arches"])
        ):
            what = f"GPU {index} has compute capability {major}.{minor}, for which torch {version} has no kernels"
            findings.append(Finding("torch", FAIL, what, _install(seen)))
    driver_text = f", driver {seen[0]} (CUDA {seen[1]})" if seen else ""
    return findings or [Finding("torch", OK, f"{version} with CUDA {cuda}{driver_text}")]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _install(seen: tuple[str, str] | None) -> str:
    """The line that installs the newest build that the driver runs."""
    most = int("".join(map(str, _number(seen[1])[:2]))) if seen else 10**6
    fitting = [wheel for wheel in WHEELS if int(wheel) <= most]
    return INSTALL_TORCH.format(cuda=(fitting or WHEELS)[-1 if fitting else 0])


def _memory(gpus: list[tuple[str, int, int]]) -> list[Finding]:
    findings = []
    for index, (name, total, free) in enumerate(gpus):
        what = f"{name}, {human_bytes(free)} of {human_bytes(total)} free"
        busy = free < total * 0.5
        fix = (
            "nvidia-smi shows which processes hold it; end them, or choose another with CUDA_VISIBLE_DEVICES"
            if busy
            else ""
        )
        findings.append(Finding(f"GPU {index}", WARN if busy else OK, what, fix))
    return findings


def between_gpus(count: int | None = None, shm: Path = Path("/dev/shm")) -> list[Finding]:
    """Several GPUs: NCCL is part of PyTorch, and it needs shared memory."""
    count = len(nvidia_gpus()) if count is None else count
    if count < 2:
        return []
    room = shutil.disk_usage(shm).total if shm.is_dir() else 0
    if room < 1 << 30:
        fix = "start the container with --shm-size 16g (or --ipc host); else export NCCL_SHM_DISABLE=1"
        return [Finding("NCCL", WARN, f"{count} GPUs talk through {shm}, which has {human_bytes(room)}", fix)]
    return [Finding("NCCL", OK, f"{count} GPUs, {human_bytes(room)} of shared memory between them")]
