"""Suggestions while a name is typed: models and data sets of the catalog, local ones, checkpoints of runs."""

from __future__ import annotations

import os
from pathlib import Path

from swift.catalog import store
from swift.web import forms
from swift.web.runlist import RunList, checkpoints

MODEL_FOLDERS = ("models", "output")
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
MOST = 60


def values(command: str, runlist: RunList) -> dict[str, list[str]]:
    """Option -> suggestions, for the options of this command that name something."""
    specs = forms.specs_of(command)
    found: dict[str, list[str]] = {}
    if "model" in specs:
        found["model"] = [*local_models(), *(entry.id for entry in store.models())]
    if "adapters" in specs:
        found["adapters"] = adapters(runlist)
    if "dataset" in specs:
        found["dataset"] = [*local_data(), *(entry.id for entry in store.datasets())]
        found["val_dataset"] = found["dataset"]
    if "eval_dataset" in specs and command == "eval":
        found["eval_dataset"] = benchmarks()
    return found


def adapters(runlist: RunList) -> list[str]:
    found = []
    for run in runlist.list()[:MOST]:
        if run.path is not None:
            found += [str(c) for c in reversed(checkpoints(run.path)) if (c / "adapter_config.json").is_file()]
    return found[:MOST]


def local_models() -> list[str]:
    """Model directories of the local collection."""
    root = Path(os.environ.get("SWIFT_MODEL_DIR") or "models")
    return [str(p.parent) for p in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")])][:MOST]


def local_data() -> list[str]:
    """Data files in the current directory and in ./data and ./datasets."""
    found = []
    for folder in (Path("."), Path("data"), Path(os.environ.get("SWIFT_DATASET_DIR") or "datasets")):
        found += [str(p) for p in sorted(folder.glob("*")) if p.suffix in DATA_SUFFIXES and p.is_file()]
    return found[:MOST]


def benchmarks() -> list[str]:
    from swift.evaluate import benchmarks as known

    return sorted({benchmark.name for benchmark in known.benchmarks().values()})
