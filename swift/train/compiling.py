"""Whether kernels compiled by torch.compile pay in a run, and what this machine lacks for them. No torch is imported.

Measured (benchmarks/RESULTS.md): compiling costs a run some 30 to 40 CPU-seconds, half of it where the code is there
from an earlier one. In float32 a step of 800 tokens takes 2 % less, one of 130 no less that could be told from noise;
elementwise work is a larger share where matrix products are fast. It must pay three times over.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from swift.config.commands import SftConfig
from swift.errors import MissingPackage

COST_SECONDS = 120.0
GAIN = {"float32": 0.02}
GAIN_IN_16_BITS = 0.05


def missing_tools() -> tuple[str, str] | None:
    """(what torch.compile lacks to make code for this CPU, how to get it); None when it has it."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler})", "install g++ (Debian: apt install g++), or name one in CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "no Python.h", "install Python's headers (Debian: apt install python3-dev)"
    return None


def check(config: SftConfig) -> None:
    """MissingPackage when --torch_compile true was asked for and can't work here."""
    training = config.training
    if not training.torch_compile or not training.use_cpu or training.torch_compile_backend not in (None, "inductor"):
        return
    missing = missing_tools()
    if missing is not None:
        raise MissingPackage(f"--torch_compile: {missing[0]}", fix=f"{missing[1]}; or leave it out")


def decide(config: SftConfig, seconds: float) -> SftConfig:
    """Compile by itself where that pays in a run of at least so many seconds; what was asked for stays."""
    if config.training.torch_compile is not None:
        return config
    why = _against(config, seconds)
    if why is not None:
        return config.decide(why, torch_compile=False)
    return config.decide(f"the run is long enough ({seconds:.0f} s or more)", torch_compile=True)


def _against(config: SftConfig, seconds: float) -> str | None:
    training = config.training
    if not training.fused_layers:
        return "layers aren't fused"
    if not training.use_cpu:
        return "measured on CPUs only"
    gain = GAIN.get(config.model.torch_dtype or "", GAIN_IN_16_BITS)
    if seconds * gain < COST_SECONDS:
        return f"a run of {seconds:.0f} s is too short for it"
    missing = missing_tools()
    return missing[0] if missing else None
