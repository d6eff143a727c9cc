"""Memory of a mapped weight file that nothing reads any more, given back to the system.

Promises: nothing that is read later differs: pages are dropped only where the system can have them again, from the
file or from swap. Does nothing where the system has no such call.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys

import torch

PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: reclaim these pages now


def give_back(tensor: torch.Tensor) -> None:
    """Drop the pages of `tensor`, if its memory isn't torch's own but a file's, which stays mapped as long as any other
    tensor of it is there. A page that it shares with its neighbours stays.
    """
    storage = tensor.untyped_storage()
    if tensor.device.type != "cpu" or storage.resizable() or not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    start = -(-storage.data_ptr() // page) * page
    end = (storage.data_ptr() + storage.nbytes()) // page * page
    if end > start:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), PAGEOUT)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
