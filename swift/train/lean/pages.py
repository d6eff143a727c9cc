"""Memory that nothing reads any more, given back to the system: of a mapped weight file, and what was freed.

Promises: the file's pages stay in the system's cache, so that the next start finds them; memory of any other kind is
left alone. Does nothing but on Linux.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")


def give_back(tensor: torch.Tensor) -> None:
    """Drop the pages of `tensor`, if its memory is a file's, which stays mapped as long as any other tensor of it is
    there. Who reads them again reads what the file holds: changes are lost. Pages shared with neighbours stay.
    """
    storage = tensor.untyped_storage()
    if tensor.device.type != "cpu" or storage.resizable() or not MAPS.exists():
        return
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and _of_a_file(start, end):
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def give_back_freed() -> None:
    """What glibc keeps of freed memory for later; nothing with another C library."""
    if MAPS.exists() and hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


def _of_a_file(start: int, end: int) -> bool:
    """Whether these addresses lie in one mapping of a file."""
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= start and end <= high:
            return inode != "0"
    return False


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
