"""What a `--dataset` word says: `[HF::|MS::]name-or-path[:subset[/subset...]][#rows]`.

Promises: a path that exists is taken as it stands, whatever characters it holds; a Windows drive is not a subset.
Knows nothing of hubs or catalogs: whether the name means anything is for the resolver to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swift.errors import UsageError

HUB_PREFIXES = {"HF::": True, "MS::": False}


@dataclass(frozen=True)
class DatasetSpec:
    """`use_hf` None: the hub that the options choose. `rows` None: all of them."""

    text: str
    name: str
    subsets: tuple[str, ...] = ()
    rows: int | None = None
    use_hf: bool | None = None


def parse_spec(text: str, exists: Callable[[str], bool] = lambda name: Path(name).expanduser().exists()) -> DatasetSpec:
    """Take a `--dataset` word apart; UsageError when the part after # is no number of rows or the name is empty."""
    rest, use_hf = text.strip(), None
    if rest[:4].upper() in HUB_PREFIXES:
        use_hf, rest = HUB_PREFIXES[rest[:4].upper()], rest[4:]
    elif exists(rest):
        return DatasetSpec(text, rest)
    name, rows = _split_rows(rest, text)
    if use_hf is not None or not exists(name):
        name, subsets = _split_subsets(name)
    else:
        subsets = ()
    if not name:
        fix = "write NAME, PATH or NAME:SUBSET#500"
        raise UsageError("the data set has no name", where=f"--dataset {text!r}", fix=fix)
    return DatasetSpec(text, name, subsets, rows, use_hf)


def _split_rows(rest: str, text: str) -> tuple[str, int | None]:
    head, mark, tail = rest.rpartition("#")
    if not mark:
        return rest, None
    if not re.fullmatch(r"[0-9]+", tail) or int(tail) == 0:
        raise UsageError(
            f"the part after # must be a number of rows above 0, not {tail!r}",
            where=f"--dataset {text!r}",
            fix=f"write {head}#500 for 500 rows, or {head} for all of them",
        )
    return head, int(tail)


def _split_subsets(name: str) -> tuple[str, tuple[str, ...]]:
    drive = 2 if re.match(r"[A-Za-z]:[\\/]", name) else 0
    head, _, tail = name[drive:].partition(":")
    return name[:drive] + head, tuple(part for part in tail.split("/") if part)
