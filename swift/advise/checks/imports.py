"""Does a library import? Found out in a child process, and what a failure means in words.

Promises: a library that crashes, hangs or floods the terminal while it is imported can't harm the caller. `explain`
turns the message of an ImportError into a cause and a command; it knows the failures that users of these libraries
report.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from swift.advise.finding import FAIL, Finding

TIMEOUT = 90.0
# what to type to get a module that isn't called like its package
PACKAGES = {
    "flash_attn": "flash-attn --no-build-isolation",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "google.protobuf": "protobuf",
}
OWN = ("swift", "__main__", "sitecustomize", "usercustomize")
_CHILD = """
import json, sys
try:
    import {module}
except BaseException as error:
    print("\\n" + json.dumps({{"error": f"{{type(error).__name__}}: {{error}}"}}))
else:
    module = sys.modules["{module}"]
    print("\\n" + json.dumps({{"version": str(getattr(module, "__version__", "")), "extra": {extra}}}))
"""


@dataclass(frozen=True)
class Import:
    """`error`: the exception's type and message, or how the child ended; None when the import worked."""

    module: str
    error: str | None = None
    version: str = ""
    extra: object = None


def try_import(module: str, extra: str = "None", timeout: float = TIMEOUT) -> Import:
    """Import `module` in a child process; `extra` is an expression over it whose JSON value comes back."""
    code = _CHILD.format(module=module, extra=extra)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Import(module, f"the import didn't end within {timeout:.0f} s")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            answer = json.loads(line)
            return Import(module, answer.get("error"), answer.get("version", ""), answer.get("extra"))
    if done.returncode < 0:
        return Import(module, f"the import crashes Python ({signal.Signals(-done.returncode).name})")
    tail = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return Import(module, tail[0])


def is_installed(module: str) -> bool:
    """Whether Python would find the module, without importing it (nor its parent's code, for a plain name)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# (pattern of the message, what it means, what to type); {module} is the library that was imported, {1} the pattern's
# group
KNOWN: Sequence[tuple[str, str, str]] = (
    (
        r"No module named '?triton\.ops",
        "bitsandbytes is older than the installed Triton, which no longer has triton.ops",
        "pip install -U bitsandbytes triton   (or switch it off: export USE_BNB=0)",
    ),
    (
        r"No module named '?(triton[\w.]*)",
        "{module} needs Triton's {1}, which isn't there",
        "pip install -U triton   (or, where Triton doesn't exist: export USE_BNB=0)",
    ),
    (
        r"(undefined symbol|DLL load failed|symbol not found)",
        "{module} was built for another version of PyTorch ({1})",
        "pip install --force-reinstall --no-cache-dir --no-build-isolation {package}",
    ),
    (
        r"(lib(?:cud|nv|nccl|cublas|cusparse|cufft)[\w.\-]*\.so[\w.]*).*(?:cannot open|No such file)",
        "the CUDA library {1} that {module} needs isn't there: it and PyTorch are made for different CUDA versions",
        "pip install --force-reinstall {both}",
    ),
    (
        r"(lib[\w.+\-]+\.so[\w.]*).*(?:cannot open|No such file)",
        "the system library {1} that {module} needs isn't there",
        "install the system package that holds {1}",
    ),
    (
        r"(GLIBC(?:XX)?_[\d.]+).*not found",
        "the system is older than {module} was built for ({1} is missing)",
        "install an older {package}, or use a container with a newer system",
    ),
    (
        r"(_ARRAY_API not found|numpy\.dtype size changed|compiled using NumPy 1)",
        "{module} and NumPy don't fit together",
        "pip install -U {package} numpy",
    ),
    (
        r"(?:CUDA Setup failed|CUDA SETUP)",
        "bitsandbytes has no binary for this CUDA version",
        "pip install -U bitsandbytes   (or switch it off: export USE_BNB=0)",
    ),
    (
        r"CUDA driver version is insufficient|driver .* too old|forward compatibility",
        "the NVIDIA driver is older than PyTorch's CUDA",
        "update the driver, or install a PyTorch for an older CUDA",
    ),
    (
        r"cannot import name '?([\w.]+)'? from '([\w.]+)'",
        "{module} wants {1} of {2}, which the installed version doesn't have",
        "pip install -U {package} {2top}",
    ),
    (
        r"No package metadata was found for (?:The '?)?([\w.\-]+)",
        "{module} needs {1}, which isn't installed",
        "pip install {1top}",
    ),
    (
        r"module '([\w.]+)' has no attribute '(\w+)'",
        "{module} wants {2} of {1}, which the installed version doesn't have",
        "pip install -U {package} {1top}",
    ),
    (r"No module named '?([\w.]+)", "{module} needs {1}, which isn't installed", "pip install {1top}"),
)


def explain(module: str, message: str) -> tuple[str, str]:
    """(what it means, the command that mends it) for the message of a failed import of `module`."""
    package = PACKAGES.get(module, module.partition(".")[0].replace("_", "-"))
    for pattern, what, fix in KNOWN:
        found = re.search(pattern, message)
        if found is None:
            continue
        words = {"module": module, "package": package, "both": " ".join(dict.fromkeys(("torch", package)))}
        groups = [found[0], *found.groups()]
        for text in (what, fix):
            for hole in re.findall(r"\{(\d)(?:top)?\}", text):
                group = groups[int(hole)] if int(hole) < len(groups) else found[0]
                top = group.partition(".")[0]
                words[hole], words[hole + "top"] = group, PACKAGES.get(top, top.replace("_", "-"))
        if words.get("1top") == package:
            what = "it isn't installed"
        return _fill(what, words), _fill(fix, words)
    return message.splitlines()[0][:300], f"pip install --force-reinstall {package}"


def _fill(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    return text


def broken(name: str, result: Import) -> Finding:
    """The finding for an import that failed."""
    what, fix = explain(result.module, result.error or "")
    return Finding(name, FAIL, f"can't be imported: {what}", fix)


def finding_of(error: BaseException) -> Finding | None:
    """What the doctor says of an error met while running: a failed import or a CUDA mismatch, also where a library
    raised another error because of it; None for any other."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    return next((found for one in reversed(chain) if (found := _finding_of(one)) is not None), None)


def _importer(error: BaseException) -> str:
    """The library whose own top-level code was running, the last of them: what was being imported. "" for none."""
    name, frame = "", error.__traceback__
    while frame is not None:
        module = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.tb_frame.f_code.co_name == "<module>" and module not in OWN and module not in sys.stdlib_module_names:
            name = module
        frame = frame.tb_next
    return name


def _finding_of(error: BaseException) -> Finding | None:
    message = f"{type(error).__name__}: {error}"
    importer = _importer(error)
    if isinstance(error, ImportError):
        named = (error.name or "").partition(".")[0]
        if named == "swift":
            return None
        module = importer or named or "a library"
        what, fix = explain(module, message)
        return Finding(module, FAIL, what, fix)
    if importer and isinstance(error, (OSError, AttributeError, RuntimeError)):
        what, fix = explain(importer, message)
        return Finding(importer, FAIL, f"can't be imported: {what}", fix)
    if re.search(
        r"CUDA driver version|no kernel image is available|forward compatibility|CUDA (?:error|Setup)", message
    ):
        what, fix = explain("torch", message)
        if "no kernel image" in message:
            what, fix = (
                "this PyTorch has no kernels for this GPU",
                "install the PyTorch build for your GPU and driver (see nvidia-smi)",
            )
        return Finding("CUDA", FAIL, what, fix)
    return None
