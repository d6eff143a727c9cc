"""Media that rows bring along as bytes or base64 become files of the cache, so that memory doesn't hold them.

Promises: a file's name is its content's hash, so equal media are one file; a file is complete or not there. Files that
no run has used for `KEEP_DAYS` are removed. Where the cache can't be written to, rows keep what they brought.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import tempfile
import time
from functools import cache
from pathlib import Path

from swift.hub.cache import cache_dir

LEAST = 4096  # characters; shorter ones are as well kept in the row
KEEP_DAYS = 90
_HEAD = re.compile(r"data:([\w./+-]*)[^,]*;base64,", re.IGNORECASE)


def as_file(reference: str) -> str:
    """The path of a file with the content of a data: URI; the reference itself where it is short, broken or no such
    URI."""
    head = _HEAD.match(reference)
    if head is None or len(reference) < LEAST:
        return reference
    try:
        content = base64.b64decode(reference[head.end() :], validate=True)
        return str(_kept(content, head[1].rpartition("/")[2]))
    except (binascii.Error, OSError):
        return reference


def _kept(content: bytes, kind: str) -> Path:
    folder = _folder()
    path = folder / (hashlib.sha256(content).hexdigest() + (f".{kind}" if kind.isalnum() else ""))
    if path.is_file():
        os.utime(path)
        return path
    handle, name = tempfile.mkstemp(dir=folder, prefix=".")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(name, path)
    return path


@cache
def _folder() -> Path:
    """The directory of the files, tidied once in a process."""
    folder = cache_dir("media")
    folder.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - KEEP_DAYS * 24 * 3600
    for path in folder.iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
    return folder
