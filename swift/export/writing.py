"""A directory that is written aside: whole under its name at the end, or nothing is left of it, and a full disk is said
in one sentence whichever library met it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from swift import runs


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """The path to write to; what is there after the block, and not committed, is removed. ResourceError for a failed
    write.
    """
    staging = out.absolute().with_name(f"{runs.STAGING_PREFIX}{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
    except OSError as error:
        raise runs.disk_error(error if error.errno else _short_write(error), out) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        reason = str(error).partition("I/O error: ")[2].partition(" (os error")[0]
        raise runs.disk_error(OSError(int(number[1]), reason), out) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _short_write(error: OSError) -> OSError:
    """numpy says only how many bytes it couldn't write."""
    full = "requested and" in str(error) and "written" in str(error)
    return OSError(28, f"no space left ({error})") if full else error
