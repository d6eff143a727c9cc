"""Environments that are broken on purpose: fake libraries and a fake driver in a directory of their own."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY_MEANS_1 = """
import sys
from swift.cli import main
main(sys.argv[1:])
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
FAKE_TORCH_INIT = """
from .version import __version__
class _Cuda:
    is_available = staticmethod(lambda: {available})
    device_count = staticmethod(lambda: 1)
    get_arch_list = staticmethod(lambda: {arches!r})
    get_device_capability = staticmethod(lambda i: {capability!r})
    class nccl:
        version = staticmethod(lambda: (2, 27, 3))
import sys
cuda = _Cuda
"""


def library(place: Path, name: str, code: str, version: str = "1.0") -> Path:
    """A fake package with metadata, so that both `import` and importlib.metadata find it."""
    package = place / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(code)
    info = place / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return package


def torch(
    place: Path, version: str, cuda: str | None, *, available=True, arches=("sm_80", "sm_90"), capability=(8, 9)
) -> None:
    package = library(
        place, "torch", FAKE_TORCH_INIT.format(available=available, arches=list(arches), capability=capability), version
    )
    (package / "version.py").write_text(f"__version__ = {version!r}\ncuda: str | None = {cuda!r}\n")


def driver(place: Path, cuda: str = "12.4", gpus=(("NVIDIA GeForce RTX 4090", 24564, 23000),)) -> None:
    """An nvidia-smi that lists these GPUs (name, MiB, free MiB)."""
    rows = "\\n".join(f"{name}, {total}, {free}" for name, total, free in gpus)
    banner = f"| NVIDIA-SMI 550.54   Driver Version: 550.54.15   CUDA Version: {cuda} |"
    place.mkdir(parents=True, exist_ok=True)
    tool = place / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncase "$1" in --query*) printf "{rows}\\n";; *) echo "{banner}";; esac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)


def swift(*argv: str, libraries: Path | None = None, tools: Path | None = None, cwd: Path | None = None, **env: str):
    """Run a swift command in an environment where `libraries` come first on the path and `tools` first among the
    programs.
    """
    path = os.pathsep.join(str(p) for p in (libraries, ROOT) if p)
    programs = os.pathsep.join([str(tools)] * bool(tools) + [os.environ["PATH"]])
    full = {
        **os.environ,
        "PYTHONPATH": path,
        "PATH": programs,
        "SWIFT_LANG": "en",
        "HF_HUB_OFFLINE": "1",
        "USE_BNB": "0",
        **env,
    }
    return subprocess.run([sys.executable, "-m", "swift", *argv], capture_output=True, text=True, env=full, cwd=cwd)


def findings(*argv: str, **where) -> tuple[dict[str, dict], int]:
    """The doctor's findings by name, and its exit code."""
    done = swift("doctor", "--json", "true", *argv, **where)
    assert "Traceback" not in done.stderr, done.stderr
    return {found["name"]: found for found in json.loads(done.stdout)}, done.returncode
