"""A benchmark's documents: where its files are looked for, and how they are read.

Promises: the places are searched in a fixed order (what the arguments name, --local_dataset, this program's cache,
OpenCompass' data folder, the hubs' caches, the hub) and an error lists them all; a broken row, an empty set and one
that is shorter than the published set are errors with file and line, never a smaller n in silence.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.data.read import Broken, file_format, read_file
from swift.data.rows import Source
from swift.errors import DataError, HubError, UsageError
from swift.evaluate.benchmarks import Benchmark
from swift.evaluate.rows import LETTERS, SHAPES
from swift.hub import local
from swift.hub.cache import cache_dir
from swift.hub.download import download
from swift.hub.names import expand

log = logging.getLogger("swift")

NO_SUBJECT = ""  # the only subject of a benchmark that has none
MOST_FILES = 100_000  # a directory with more is not a directory of benchmarks
MOST_BAD = 5


@dataclass(frozen=True)
class Place:
    """A directory to search; `name` is what its paths begin with. `exact` is a file that was named itself."""

    root: Path
    name: str
    exact: bool = False


@dataclass(frozen=True)
class Documents:
    """Documents by subject. `digest` identifies their content; `partial` says how they fall short of the full set."""

    split: str
    subjects: Mapping[str, list[dict[str, Any]]]
    fewshot: Mapping[str, list[dict[str, Any]]]
    files: tuple[Path, ...]
    digest: str
    partial: str | None = None

    @property
    def count(self) -> int:
        return sum(map(len, self.subjects.values()))


@dataclass(frozen=True)
class Wish:
    """What a user asks of one benchmark's data (--eval_dataset_args and the options around it)."""

    local_path: str | None = None
    subjects: tuple[str, ...] = ()
    limit: int | None = None
    shots: int = 0
    local_dataset: str | None = None
    use_hf: bool = False
    hub_token: str | None = None


def load_documents(benchmark: Benchmark, wish: Wish) -> Documents:
    """The documents to ask and those for examples; DataError as the module says, HubError when the hub fails."""
    places = list(_places(benchmark, wish))
    for place in places:
        found = _search(benchmark, place)
        if found:
            return _read_all(benchmark, wish, place, *found)
    if wish.local_path is not None or benchmark.own:
        raise _nowhere(benchmark, wish, places)
    place = _from_hub(benchmark, wish, places)
    found = _search(benchmark, place)
    if not found:
        raise DataError(
            f"the hub's copy of {benchmark.name} has none of the known files",
            where=str(place.root),
            fix=_fix(benchmark),
        )
    return _read_all(benchmark, wish, place, *found)


def _places(benchmark: Benchmark, wish: Wish) -> Iterator[Place]:
    if wish.local_path is not None:
        path = expand(wish.local_path)
        if not path.exists():
            raise UsageError("no such file or directory", where=f"local_path {path} of {benchmark.name}")
        yield Place(path, path.absolute().name, exact=path.is_file())
        return
    if wish.local_dataset is not None and wish.local_dataset.lower() not in ("false", "none"):
        root = expand("data" if wish.local_dataset.lower() == "true" else wish.local_dataset)
        if not root.exists():
            raise UsageError("no such directory", where=f"--local_dataset {root}")
        yield Place(root, root.absolute().name, exact=root.is_file())
    if benchmark.own:
        return
    yield Place(cache_dir("eval"), "eval")
    if os.environ.get("COMPASS_DATA_CACHE"):
        yield Place(Path(os.environ["COMPASS_DATA_CACHE"]), "data")
    for use_hf in (wish.use_hf, not wish.use_hf):
        hub_id = benchmark.hub.get("huggingface" if use_hf else "modelscope")
        if hub_id:
            for snapshot in local.cached_snapshots("datasets", hub_id, use_hf=use_hf):
                yield Place(snapshot, hub_id.rpartition("/")[2])


def _from_hub(benchmark: Benchmark, wish: Wish, places: list[Place]) -> Place:
    hub_id = benchmark.hub["huggingface" if wish.use_hf else "modelscope"]
    try:
        root = download("datasets", hub_id, revision=None, use_hf=wish.use_hf, token=wish.hub_token)
    except HubError as error:
        looked = "; ".join(str(place.root) for place in places)
        raise HubError(
            f"{benchmark.name} is not on this machine (looked in {looked}), and the hub gave nothing: {error.what}",
            where=hub_id,
            fix=_fix(benchmark),
        ) from error
    return Place(root, hub_id.rpartition("/")[2])


def _fix(benchmark: Benchmark) -> str:
    return (
        f"--local_dataset DIRECTORY with the files of {benchmark.name} (layouts: docs/en/evaluation.md), or a network"
    )


def _nowhere(benchmark: Benchmark, wish: Wish, places: list[Place]) -> DataError:
    looked = "; ".join(str(place.root) for place in places) or "nothing"
    fix = _fix(benchmark)
    if benchmark.own:
        fix = (
            f"""--eval_dataset_args '{{"{benchmark.name}": {{"local_path": "DIRECTORY", "subset_list": ["NAME"]}}}}'"""
        )
    return DataError(f"no files of {benchmark.name}", where=f"looked in {looked}", fix=fix)


def _tree(place: Place) -> list[tuple[str, Path]]:
    """(name to match, path) of every data file of a place, in order."""
    if place.exact:
        return [(place.name.lower(), place.root)]
    found: list[tuple[str, Path]] = []
    for folder, folders, files in os.walk(place.root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if file_format(path) is not None:
                found.append((f"{place.name}/{path.relative_to(place.root).as_posix()}".lower(), path))
        if len(found) > MOST_FILES:
            raise UsageError(f"more than {MOST_FILES} files", where=str(place.root), fix="name a smaller directory")
    return found


Found = tuple[str, int | None, list[tuple[str, Path]], list[tuple[str, Path]]]


def _search(benchmark: Benchmark, place: Place) -> Found | None:
    """(split, rows of the full split, test files with their subjects, files of examples) of the first layout there."""
    if not place.root.exists():
        return None
    tree = _tree(place)
    for pattern in benchmark.files:
        files = _matching(benchmark, tree, pattern.match)
        if files:
            return pattern.split, pattern.rows or benchmark.rows, files, _examples(benchmark, tree)
    if place.exact:
        return benchmark.files[0].split, benchmark.rows, [(NO_SUBJECT, place.root)], []
    return None


def _examples(benchmark: Benchmark, tree: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    return next((files for match in benchmark.fewshot_files if (files := _matching(benchmark, tree, match))), [])


def _matching(benchmark: Benchmark, tree: list[tuple[str, Path]], match: str) -> list[tuple[str, Path]]:
    """(subject, path) of the files that a pattern finds; a subject that the benchmark doesn't have is another set's."""
    found = []
    for name, path in tree:
        hit = re.search(match, name)
        if hit:
            subject = hit.groupdict().get("subject") or NO_SUBJECT
            if not subject or not benchmark.known_subjects or subject in benchmark.known_subjects:
                found.append((subject, path))
    return found


def _read_all(
    benchmark: Benchmark,
    wish: Wish,
    place: Place,
    split: str,
    full: int | None,
    files: list[tuple[str, Path]],
    examples: list[tuple[str, Path]],
) -> Documents:
    subjects = _read(benchmark, files)
    if wish.subjects:
        subjects = _only(benchmark, subjects, wish.subjects, place)
    count = sum(map(len, subjects.values()))
    if not count:
        raise DataError(f"{benchmark.name} is empty", where=str(files[0][1]), fix="the files hold no row")
    partial = None
    if not wish.subjects:
        partial = _shortage(benchmark, wish, subjects, count, full, files[0][1])
    fewshot = _read(benchmark, examples) if wish.shots and examples else {}
    if wish.limit is not None:
        subjects = {subject: docs[: wish.limit] for subject, docs in subjects.items()}
    digest = hashlib.sha256(repr([subjects, fewshot]).encode("utf-8", "replace")).hexdigest()
    return Documents(split, subjects, fewshot, tuple(path for _, path in files), digest, partial)


def _shortage(
    benchmark: Benchmark, wish: Wish, subjects: Mapping[str, list], count: int, full: int | None, file: Path
) -> str | None:
    """How the files fall short of the published set, which is an error unless --eval_limit asks for less anyway."""
    if benchmark.subjects and len(subjects) < benchmark.subjects:
        what = f"{len(subjects)} of the {benchmark.subjects} subjects of {benchmark.name} are there"
        some = json.dumps({benchmark.name: {"subset_list": [next(iter(subjects)), "..."]}})
        fix = f"get the rest, or say that you mean these: --eval_dataset_args '{some}'"
        raise DataError(what, where=str(file.parent), fix=fix)
    if full is None or count >= full:
        return None
    what = f"{count} of the {full} rows of {benchmark.name} are there"
    if wish.limit is not None and all(len(docs) >= wish.limit for docs in subjects.values()):
        return what
    if wish.limit is None:
        least = min(map(len, subjects.values()))
        fix = f"was the copy cut short? --eval_limit {least} says that you mean these rows"
    else:
        fix = f"was the copy cut short? --eval_limit {wish.limit} asks for more than there are"
    raise DataError(what, where=str(file), fix=fix)


def _only(
    benchmark: Benchmark, subjects: Mapping[str, list], wanted: Iterable[str], place: Place
) -> dict[str, list[dict[str, Any]]]:
    missing = [name for name in wanted if name.lower() not in subjects and name not in subjects]
    if missing:
        have = ", ".join(sorted(subjects)[:8]) or "none"
        raise UsageError(
            f"no subset {missing[0]!r} of {benchmark.name} in {place.root}",
            where="--eval_dataset_args",
            fix=f"it has: {have}",
        )
    return {name: subjects.get(name, subjects.get(name.lower())) for name in wanted}


def _read(benchmark: Benchmark, files: list[tuple[str, Path]]) -> dict[str, list[dict[str, Any]]]:
    """Documents by subject; DataError for the first rows that can't be read."""
    shape = SHAPES[benchmark.shape]
    subjects: dict[str, list[dict[str, Any]]] = {}
    bad: list[str] = []
    for subject, path in files:
        for row, source in _rows(path):
            if isinstance(row, Broken):
                bad.append(f"{source}: {row.reason} {row.detail}".rstrip())
                continue
            try:
                doc = shape(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
                bad.append(f"{source}: {reason}")
                continue
            subjects.setdefault(subject or str(doc.pop("subject", NO_SUBJECT)), []).append(doc)
    if bad:
        more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
        raise DataError(f"{benchmark.name} has rows that can't be read: {bad[0]}{more}", fix="mend or replace the file")
    return subjects


def _rows(path: Path) -> Iterator[tuple[Any, Source]]:
    """The rows of a file; the csv files of hendrycks/test have no header."""
    if file_format(path) == "csv" and path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = next(csv.reader(file), [])
        if len(first) > 3 and re.fullmatch(r"[A-J0-9]", first[-1].strip()) and "question" not in map(str.lower, first):
            yield from _headerless(path)
            return
    yield from read_file(path)


def _headerless(path: Path) -> Iterator[tuple[Any, Source]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for fields in reader:
            options = dict(zip(LETTERS, fields[1:-1], strict=False))
            yield {"question": fields[0], **options, "answer": fields[-1]}, Source(str(path), reader.line_num)
