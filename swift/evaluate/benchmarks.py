"""The benchmarks that `swift eval` knows: one YAML file each in tasks/, looked up by name without regard to case.

Promises: a name that isn't known is an error that names the nearest ones; the files are read without lm-eval. What a
field means stands at `Benchmark`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift.errors import UsageError

FOLDER = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class FilePattern:
    """Files of one split: `match` is searched in the lower-case path below the searched directory, whose own name
    comes first. A group named `subject` says which subject a file holds. `rows` when it differs from the benchmark's.
    """

    split: str
    match: str
    rows: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as data.

    `shape` names the reader in rows.py that turns a row of any known layout into the fields that `lm_eval` (a task
    configuration of lm-evaluation-harness without its data) refers to. `rows` is the number of rows of the full set:
    fewer are an error unless --eval_limit says so. `primary` is the metric that is reported first, "metric" or
    "metric,filter". `judge` names a scoring function in judges.py. `chat`: asked through the model's chat template.
    """

    name: str
    about: str
    shape: str
    files: tuple[FilePattern, ...]
    primary: str
    lm_eval: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    licence: str = ""
    hub: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    subjects: int | None = None
    fewshot_files: tuple[str, ...] = ()
    description: str = ""
    subject_names: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    examples: str | None = None
    judge: str | None = None
    chat: bool = False
    runs_code: bool = False
    own: bool = False

    @property
    def generates(self) -> bool:
        return self.lm_eval["output_type"] == "generate_until"

    @property
    def known_subjects(self) -> frozenset[str]:
        """Subjects by name; empty when any name may be one."""
        return frozenset(self.subject_names) | {name for names in self.categories.values() for name in names}

    def describe(self, subject: str) -> str:
        """What stands before the examples of a subject's prompt."""
        spoken = self.subject_names.get(subject, subject.replace("_", " "))
        return self.description.replace("{subject}", spoken)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@functools.cache
def benchmarks() -> Mapping[str, Benchmark]:
    """All benchmarks by name, in alphabetical order."""
    import yaml

    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["files"] = tuple(FilePattern(**pattern) for pattern in values["files"])
        for name in ("aliases", "fewshot_files"):
            values[name] = tuple(values.get(name, ()))
        values["categories"] = {name: tuple(members) for name, members in values.get("categories", {}).items()}
        benchmark = Benchmark(**values)
        found[benchmark.name] = benchmark
    return found


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name or alias; UsageError with the nearest names otherwise."""
    by_key = {}
    for benchmark in benchmarks().values():
        for known in (benchmark.name, *benchmark.aliases):
            by_key[_key(known)] = benchmark
    if _key(name) in by_key:
        return by_key[_key(name)]
    near = difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.5)
    names = list(dict.fromkeys(by_key[key].name for key in near))
    fix = f"did you mean {' or '.join(names)}?" if names else f"one of: {', '.join(benchmarks())}"
    raise UsageError("no such benchmark", where=f"--eval_dataset {name}", fix=fix)
