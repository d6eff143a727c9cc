"""Cached data sets: rows encoded ahead by `swift export --to_cached_dataset true`, for `--cached_dataset DIR`.

A directory holds `train/` and perhaps `val/`, each with the flat arrays of `EncodedDataset`, what became of the rows,
the places that they came from, and what the ids depend on. Promises: it is complete or not there; rows encoded with
another tokenizer, template or option than those of the run that reads them are an error that names the difference. Rows
with images, videos or audio aren't cached.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swift import runs
from swift.config.commands import SftConfig
from swift.data.cache import read_count, write_count
from swift.data.encoded import EncodedDataset
from swift.data.report import SplitCount
from swift.data.tally import DatasetCount
from swift.errors import DataError, UsageError

FACTS, SOURCES = "encoder.json", "sources.json"
SPLITS = ("train", "val")
# options that the ids depend on: a run that reads the rows takes them over where it was given none
OPTIONS = (
    "template",
    "system",
    "max_length",
    "truncation_strategy",
    "loss_scale",
    "enable_thinking",
    "preserve_thinking",
    "add_non_thinking_prefix",
    "template_kwargs",
    "response_prefix",
    "use_chat_template",
)


@dataclass(frozen=True)
class CachedSplit:
    """One split, mapped. `facts`: what the ids depend on; `options`: the command line's part of that."""

    directory: Path
    encoded: EncodedDataset
    count: SplitCount
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    files: tuple[str, ...]
    file_of: np.ndarray
    line_of: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.line_of)

    def source(self, row_id: int) -> str:
        """file:line of a row, as it was when the rows were encoded."""
        return f"{self.files[self.file_of[row_id]]}:{self.line_of[row_id]}"

    def dataset_count(self, as_val: bool = False) -> DatasetCount:
        count = DatasetCount(str(self.directory), read=self.count.rows, formats=Counter({"cached": self.count.rows}))
        return dataclasses.replace(count, **{"val" if as_val else "train": self.count.rows})


def save_split(
    directory: Path,
    encoded: EncodedDataset,
    count: SplitCount,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    source: Callable[[int], str],
) -> None:
    """Write one split; rows are numbered anew from 0. `source`: the file:line of a row id."""
    if encoded.media:
        raise UsageError("rows with images, videos or audio can't be cached", where="--to_cached_dataset")
    directory.mkdir(parents=True)
    ids, renumbered = np.unique(encoded.row_ids, return_inverse=True)
    EncodedDataset(encoded.ids, encoded.learned, encoded.starts, renumbered, encoded.trained, encoded.scales).save(
        directory
    )
    places = [source(int(row)).rpartition(":") for row in ids]
    numbers = {file: i for i, file in enumerate(dict.fromkeys(file for file, _, _ in places))}
    np.array([numbers[file] for file, _, _ in places], "<i4").tofile(directory / "file_of.bin")
    np.array([int(line) for _, _, line in places], "<i8").tofile(directory / "line_of.bin")
    runs.write_json(directory / SOURCES, list(numbers))
    runs.write_json(directory / FACTS, {"facts": facts, "options": options})
    write_count(directory, count)
    runs.write_manifest(directory)


def find_split(name: str, split: str) -> Path | None:
    """The directory of a split: `name` itself, or the one in it; None when `name` holds only the other one."""
    directory = Path(name).expanduser()
    if (directory / FACTS).is_file():
        return directory
    if any((directory / other / FACTS).is_file() for other in SPLITS):
        return directory / split if (directory / split / FACTS).is_file() else None
    flag = "--cached_dataset" if split == "train" else "--cached_val_dataset"
    what = "this is no cached data set" if directory.exists() else "no such directory"
    fix = "make one: swift export --to_cached_dataset true --model M --dataset D --output_dir DIR"
    raise DataError(what, where=f"{flag} {name}", fix=fix)


def open_split(directory: Path, split: str) -> CachedSplit:
    """Map a split. DataError when a file is missing or cut short."""
    problems = runs.verify_dir(directory, hashes=False)
    if problems:
        raise DataError(f"the cached data set is not whole: {problems[0]}", where=str(directory), fix="export it anew")
    encoded = EncodedDataset.load(directory)
    saved = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    files = json.loads((directory / SOURCES).read_text(encoding="utf-8"))
    return CachedSplit(
        directory,
        encoded,
        read_count(directory, split, encoded),
        saved["facts"],
        saved["options"],
        tuple(files),
        np.fromfile(directory / "file_of.bin", "<i4"),
        np.fromfile(directory / "line_of.bin", "<i8"),
    )


def options_of(names: Sequence[str]) -> dict[str, Any]:
    """The options that the first cached data set was encoded with; {} without one."""
    for name in names:
        directory = find_split(name, "train") or find_split(name, "val")
        return json.loads((directory / FACTS).read_text(encoding="utf-8"))["options"]
    return {}


def check_facts(split: CachedSplit, facts: Mapping[str, Any] | None) -> None:
    """DataError when the rows were encoded otherwise than this run would: `facts` as of `encoder_facts`."""
    mine = json.loads(json.dumps(facts, default=str)) or {}
    ours = {k: v for k, v in split.facts.items() if k != "today"}
    different = [name for name in ours if ours[name] != mine.get(name)]
    if different:
        name = different[0]
        shown = "" if name in ("tokenizer", "template", "variables") else f": {ours[name]!r}, here {mine.get(name)!r}"
        raise DataError(
            f"the rows were encoded with another {name}{shown}",
            where=f"--cached_dataset {split.directory}",
            fix="use the model and options that it was exported with, or export it anew",
        )


def take_over_cached(config: SftConfig) -> SftConfig:
    """The config with what its cached data sets say: options that they were encoded with, val rows that they hold."""
    names = config.supply.cached_dataset
    options = options_of((*names, *config.supply.cached_val_dataset))
    taken = {name: value for name, value in options.items() if name not in config.origins}
    config = config.replace(taken, "cached data set", (names or config.supply.cached_val_dataset)[0])
    if config.supply.cached_val_dataset or config.data.val_dataset:
        return config
    held = tuple(name for name in names if find_split(name, "train") != find_split(name, "val") is not None)
    return config.decide("the cached data set holds them", cached_val_dataset=held) if held else config
