"""The machine: main memory and its limits, disks, shared memory, process limits, and whether the hubs answer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from swift.advise.finding import FAIL, OK, WARN, Finding
from swift.hub import huggingface, local, modelscope
from swift.hub.resources import available_memory, existing_parent, human_bytes

GB = 10**9
LOW_MEMORY, LITTLE_MEMORY = 1 * GB, 4 * GB
FULL_DISK, LOW_DISK = GB // 2, 10 * GB
SMALL_SHM = 1 << 30
FEW_FILES = 4096


def memory() -> list[Finding]:
    """What can be used now, the container's limit included."""
    room = available_memory()
    if room is None:
        return [Finding("memory", WARN, "this system doesn't say how much memory is available")]
    what = f"{human_bytes(room)} available"
    if room < LITTLE_MEMORY:
        fix = "close other programs, or raise the container's memory limit"
        return [Finding("memory", FAIL if room < LOW_MEMORY else WARN, what, fix)]
    return [Finding("memory", OK, what)]


def disks(output_dir: str | None = None) -> list[Finding]:
    """Room and the right to write where runs, downloads and temporary files go."""
    places = {
        "disk (output)": Path(output_dir or "output"),
        "disk (models)": local.modelscope_cache(),
        "disk (temporary)": Path(tempfile.gettempdir()),
    }
    advice = {
        "disk (output)": "choose another place: --output_dir DIR",
        "disk (models)": "choose another place: export MODELSCOPE_CACHE=DIR HF_HOME=DIR",
        "disk (temporary)": "choose another place: export TMPDIR=DIR",
    }
    return [_disk(name, path, advice[name]) for name, path in places.items()]


def _disk(name: str, path: Path, elsewhere: str) -> Finding:
    place = existing_parent(path.expanduser())
    if not place.is_dir():
        return Finding(name, FAIL, f"{place} is not a directory", elsewhere)
    free = shutil.disk_usage(place).free
    if read_only(place):
        return Finding(name, FAIL, f"{place} can't be written to", f"chmod u+w {place}, or {elsewhere}")
    what = f"{human_bytes(free)} free at {place}"
    if free < LOW_DISK:
        return Finding(name, FAIL if free < FULL_DISK else WARN, what, f"free some space, or {elsewhere}")
    return Finding(name, OK, what)


def read_only(directory: Path) -> bool:
    """Whether a file can't be made here: no permission, or a file system mounted read-only."""
    if not os.access(directory, os.W_OK | os.X_OK):
        return True
    return sys.platform != "win32" and bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def shared_memory(shm: Path = Path("/dev/shm")) -> list[Finding]:
    """Data-loader workers hand batches over through /dev/shm."""
    if not shm.is_dir():
        return []
    total = shutil.disk_usage(shm).total
    if total < SMALL_SHM:
        fix = "start the container with --shm-size 8g (or --ipc host); else keep --dataloader_num_workers 0"
        return [
            Finding("/dev/shm", WARN, f"only {human_bytes(total)}: data-loader workers may die with a bus error", fix)
        ]
    return [Finding("/dev/shm", OK, human_bytes(total))]


def limits() -> list[Finding]:
    """Limits of this process (ulimit): open files and address space."""
    if sys.platform == "win32":
        return []
    import resource

    findings = []
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        allowed = 65536 if most == resource.RLIM_INFINITY else most
        what = f"{files} open files at most: many shards or workers need more"
        findings.append(Finding("ulimit -n", WARN, what, f"ulimit -n {max(allowed, files)}"))
    else:
        count = "no limit" if files == resource.RLIM_INFINITY else f"{files} open files"
        findings.append(Finding("ulimit -n", OK, count))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        what = f"address space is limited to {human_bytes(space)}: models are mapped into memory and need more"
        findings.append(Finding("ulimit -v", WARN, what, "ulimit -v unlimited"))
    return findings


def hubs(timeout: float = 5.0) -> list[Finding]:
    """Whether ModelScope and Hugging Face answer, and how fast. Asks the network: only when wanted."""
    places = {"ModelScope": modelscope.endpoint(), "Hugging Face": huggingface.endpoint()}
    return [_hub(name, address, timeout) for name, address in places.items()]


def _hub(name: str, address: str, timeout: float) -> Finding:
    if local.offline():
        return Finding(
            name, WARN, "not asked: SWIFT_OFFLINE or HF_HUB_OFFLINE is set", "unset SWIFT_OFFLINE HF_HUB_OFFLINE"
        )
    began = time.monotonic()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=timeout):
            pass
    except urllib.error.HTTPError:
        pass  # an answer, if not a friendly one
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        fix = "check the network; behind a proxy: export https_proxy=http://HOST:PORT; a mirror: export HF_ENDPOINT=https://..."
        return Finding(name, FAIL, f"{address} doesn't answer: {reason}", fix)
    return Finding(name, OK, f"{address} answers in {time.monotonic() - began:.1f} s")
