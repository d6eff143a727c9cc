"""Installed packages: Python itself, the versions swift asks for, the optional libraries, and what these ask of each
other.

Promises: reads metadata; only libraries with compiled parts that often break are imported, in child processes side by
side.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swift.advise.checks.imports import broken, installed_version, is_installed, try_import
from swift.advise.checks.metadata import whole
from swift.advise.finding import FAIL, OK, WARN, Finding
from swift.config.packages import bnb_switched_off

OLDEST = (3, 10)
DISTRIBUTION = "swift-lm"
PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
# optional library -> (distribution, what for, what to type)
OPTIONAL = {
    "triton": ("triton", "fused kernels", "pip install triton"),
    "bitsandbytes": ("bitsandbytes", "--load_in_8bit, --load_in_4bit", "pip install bitsandbytes"),
    "flash_attn": ("flash-attn", "--use_flash_attn true", "pip install flash-attn --no-build-isolation"),
    "vllm": ("vllm", "--infer_backend vllm", "pip install vllm"),
    "deepspeed": ("deepspeed", "--deepspeed", "pip install deepspeed"),
    "gradio": ("gradio", "swift web-ui", "pip install gradio"),
}
IMPORTED = ("triton", "bitsandbytes", "flash_attn")
NEED_GPU = ("triton", "flash_attn", "vllm", "deepspeed")
# what swift can't do without, and whose files are looked through in no time
CORE = ("peft", "accelerate", "tokenizers", "safetensors")
CLASHING = (
    "torch",
    "transformers",
    "numpy",
    "peft",
    "accelerate",
    "huggingface_hub",
    "tokenizers",
    "triton",
    "pydantic",
    "starlette",
)


def python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST:
        return [Finding("Python", FAIL, f"{version} is too old: 3.10 or newer is needed", "use Python 3.10 to 3.13")]
    bits = "" if sys.maxsize > 1 << 32 else ", 32 bits: PyTorch needs 64"
    return [Finding("Python", FAIL if bits else OK, f"{version} at {sys.executable}{bits}")]


def requirements() -> list[str]:
    """swift's own requirements as written in its package, or in pyproject.toml beside the source."""
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        pass
    if not PYPROJECT.is_file():
        return []
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return project["dependencies"] + [
        (f"{requirement}; {x}" if x.startswith("extra") else f"{requirement} ; extra == '{x}'")
        if ";" not in requirement
        else requirement
        for x, group in extras.items()
        for requirement in group
    ]


def core_versions() -> list[Finding]:
    """One finding per requirement that isn't met; one for all of them when they are."""
    from packaging.requirements import Requirement

    problems, met = [], 0
    for text in requirements():
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker is not None and not optional and not requirement.marker.evaluate():
            continue
        have = installed_version(requirement.name)
        if have is None:
            if not optional:
                problems.append(
                    Finding(requirement.name, FAIL, "is not installed", f"pip install '{_spec(requirement)}'")
                )
        elif not requirement.specifier.contains(have, prereleases=True):
            what = f"{have} is installed, swift needs {requirement.specifier}"
            problems.append(
                Finding(requirement.name, WARN if optional else FAIL, what, f"pip install '{_spec(requirement)}'")
            )
        else:
            met += not optional
    if not problems:
        problems = _broken_core()
    return problems or [Finding("packages", OK, f"the {met} packages that swift needs are there, in versions it knows")]


def _broken_core() -> list[Finding]:
    """Of the libraries whose files speak against an import, those that can't be imported."""
    odd = [module for module in CORE if is_installed(module) and not whole(module, module)]
    with ThreadPoolExecutor(max_workers=len(CORE)) as pool:
        found = dict(zip(odd, pool.map(try_import, odd), strict=True))
    return [broken(module, result) for module, result in found.items() if result.error]


def _spec(requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def optional_libraries(has_gpu: bool) -> list[Finding]:
    """One finding per optional library: its version when it works, what is wrong when it doesn't, how to get it."""
    present = [module for module in OPTIONAL if is_installed(module)]
    skipped = {"bitsandbytes"} if bnb_switched_off() else set()
    probed = [module for module in present if module in IMPORTED and module not in skipped]
    if not has_gpu:  # what a CUDA library lacks can't show; the rest stands in the files
        probed = [module for module in probed if not whole(module, OPTIONAL[module][0])]
    with ThreadPoolExecutor(max_workers=4) as pool:
        imports = dict(zip(probed, pool.map(try_import, probed), strict=True))
    findings = []
    for module, (distribution, purpose, install) in OPTIONAL.items():
        name = distribution
        if module in skipped:
            findings.append(
                Finding(name, OK, "switched off by USE_BNB=0: --load_in_8bit and --load_in_4bit are refused")
            )
        elif module not in present:
            hint = "" if module in NEED_GPU and not has_gpu else install
            findings.append(Finding(name, OK, f"not installed (only needed for {purpose})", hint))
        elif module in imports and imports[module].error:
            finding = broken(name, imports[module])
            findings.append(_milder(finding) if not has_gpu and module in NEED_GPU else finding)
        else:
            version = installed_version(distribution) or (imports[module].version if module in imports else "")
            clash = conflicts(distribution)
            findings.append(clash or Finding(name, OK, f"{version} ({purpose})".strip()))
    return findings


def _milder(finding: Finding) -> Finding:
    """A broken library that this machine can't use anyway."""
    return Finding(finding.name, WARN, finding.what, finding.fix)


def conflicts(distribution: str, watched: Iterable[str] = CLASHING) -> Finding | None:
    """What an installed package asks of the shared libraries and doesn't get, if anything."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    names = {_canonical(name) for name in watched}
    clashes = []
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = installed_version(requirement.name)
        if (
            _canonical(requirement.name) in names
            and have
            and not requirement.specifier.contains(have, prereleases=True)
        ):
            clashes.append(f"{requirement.name}{requirement.specifier} (installed: {have})")
    if not clashes:
        return None
    what = f"{installed_version(distribution)} needs {', '.join(clashes)}"
    return Finding(distribution, WARN, what, f"give it an environment of its own: python -m venv {distribution}-env")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def shadowed(module: str = "torch") -> bool:
    """Whether another file of that name would be imported than the one that its package installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return False
    try:
        home = Path(str(importlib.metadata.distribution(module).locate_file(module)))
    except importlib.metadata.PackageNotFoundError:
        return True
    return home.resolve() not in Path(spec.origin).resolve().parents
