"""Is there room? Disk and main memory, with figures, before a download or a load starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from swift.errors import ResourceError


def human_bytes(count: float) -> str:
    """`8.04 GB` (powers of 1000, as hubs and disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def existing_parent(path: Path) -> Path:
    """`path`, or its nearest ancestor that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def check_disk(path: Path | str, needed_bytes: int, what: str = "this") -> int:
    """Free bytes on the file system of `path` (which need not exist yet); ResourceError when fewer than
    `needed_bytes`."""
    path = Path(path)
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed_bytes:
        raise ResourceError(
            f"not enough disk space: {what} needs {human_bytes(needed_bytes)}, {human_bytes(free)} are free",
            where=str(path),
            fix="free some space, or choose a directory on another disk",
        )
    return free


def available_memory() -> int | None:
    """Bytes of main memory that can be used without swapping, limits of the container and of this process (`ulimit -v`,
    `ulimit -d`) included; None if unknown."""
    figures = [figure for figure in (_meminfo(), _cgroup_room(), _limit_room()) if figure is not None]
    if figures:
        return min(figures)
    return total_memory()


def total_memory() -> int | None:
    """Bytes of main memory that the machine has; None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _meminfo() -> int | None:
    """MemAvailable of /proc/meminfo (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_room(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the container's memory limit leaves (cgroup v2, then v1); its page cache counts as free."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            top = (root / limit).read_text(encoding="ascii").strip()
            now = int((root / used).read_text(encoding="ascii"))
            pairs = (line.split() for line in (root / stat).read_text(encoding="ascii").splitlines())
            cache = next((int(value) for key, value in pairs if key in ("inactive_file", "total_inactive_file")), 0)
        except OSError:
            continue
        if top == "max" or int(top) >= 1 << 60:
            return None
        return max(0, int(top) - now + cache)
    return None


def _limit_room() -> int | None:
    """What the limits of this process's address space and data leave (Linux); None without any."""
    try:
        import resource

        sizes = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except (ImportError, OSError):
        return None
    used = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in sizes if line.startswith(("VmSize", "VmData"))}
    tops = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
    soft = [(resource.getrlimit(kind)[0], used.get(name, 0)) for kind, name in tops]
    return min((max(0, top - now) for top, now in soft if top != resource.RLIM_INFINITY), default=None)


def check_memory(needed_bytes: int, what: str = "the model", available: int | None = None) -> int | None:
    """Available main memory in bytes (None: unknown); ResourceError when it is less than `needed_bytes`."""
    available = available_memory() if available is None else available
    if available is not None and available < needed_bytes:
        have = f"{human_bytes(available)} are available"
        raise ResourceError(
            f"not enough memory: {what} needs about {human_bytes(needed_bytes)}, {have}",
            fix="choose a smaller or quantized model, close other programs, or use a machine with more memory",
        )
    return available
