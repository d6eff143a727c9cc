"""Rows on disk: a second run over the same big files reads neither JSON nor columns again.

Promises: an entry is complete or not there, and is found again only when the files' content, every option of the data
and this program's own reading code are equal; of several runs or ranks that want the same rows one reads them and the
others wait. Rows with images, videos or audio are not kept: whether their files exist must be seen anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from swift import runs
from swift.data.cache import prune
from swift.data.report import DataReport
from swift.data.rows import Rows, RowStore
from swift.data.tally import DatasetCount, Drops
from swift.errors import ResourceError

log = logging.getLogger("swift")

LEAST_BYTES = 8 << 20  # smaller files are read faster than an entry is worth
FACTS = "rows.json"
_CODE = (
    "formats",
    "identity",
    "info",
    "load",
    "media",
    "messages",
    "read",
    "row_cache",
    "rows",
    "select",
    "sources",
    "spec",
)

# train rows, val rows, report
Read = tuple[Rows, Rows, DataReport]


def big_enough(files: Iterable[Path]) -> bool:
    return sum(file.stat().st_size for file in files if file.is_file()) >= LEAST_BYTES


def digest_of(facts: Any) -> Any:
    """A sha256 object begun with `facts` as JSON, what JSON doesn't know as str."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))


def row_key(files: Iterable[Path], facts: Any) -> str:
    """A name that changes with the files' content and places, `facts` and the code that reads rows."""
    digest = digest_of(facts)
    for name in _CODE:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for file in files:
        digest.update(os.fsencode(file.absolute()))
        digest.update(runs.file_digest(file).encode())
    return digest.hexdigest()[:32]


def read_cached(root: Path, key: str, read: Callable[[], Read]) -> Read:
    """What `read()` gives, or gave in an earlier run. A cache that can't be written to is remarked on, not an error."""
    entry = root / key
    try:
        found = _open(entry)
        if found is None:
            runs.ensure_writable_dir(root)
            with runs.one_at_a_time(entry, lambda: log.info("another process reads the same rows: waiting for it")):
                found = _open(entry) or _keep(entry, read)
        return found
    except ResourceError as error:
        if not str(error.where).startswith(str(root)):
            raise
        train, val, report = read()
        report.remarks.append(f"rows are not cached: {error.what}")
        return train, val, report


def _keep(entry: Path, read: Callable[[], Read]) -> Read:
    """Read, write aside, rename; the rows are then those of the files written, so that memory holds no copy."""
    train, val, report = read()
    if train.store.has_media:
        return train, val, report
    prune(entry.parent)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f"{runs.STAGING_PREFIX}{entry.name}-", dir=entry.parent))
        try:
            train.store.save(staging)
            for name, rows in (("train", train), ("val", val)):
                rows.indices.astype("<i8").tofile(staging / f"{name}.bin")
            runs.write_json(staging / FACTS, _report_facts(report))
            runs.write_manifest(staging)
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one
            os.rename(staging, entry)
            runs.fsync_dir(entry.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        report.remarks.append(f"rows are not cached: {error.strerror or error}")
        return train, val, report
    return _open(entry, said=False) or (train, val, report)


def _open(entry: Path, said: bool = True) -> Read | None:
    if not entry.is_dir() or runs.verify_dir(entry, hashes=False):
        return None
    store = RowStore.load(entry)
    report = _report_from(json.loads((entry / FACTS).read_text(encoding="utf-8")))
    if said:
        report.remarks.append(f"rows read from the cache ({entry})")
    os.utime(entry)
    train, val = (Rows(store, np.fromfile(entry / f"{name}.bin", "<i8")) for name in ("train", "val"))
    return train, val, report


def _report_facts(report: DataReport) -> dict[str, Any]:
    return {
        "datasets": [{**vars(count), "drops": vars(count.drops)} for count in report.datasets],
        "remarks": report.remarks,
        "duplicates": report.duplicates,
        "val_in_train": report.val_in_train,
    }


def _report_from(facts: dict[str, Any]) -> DataReport:
    counts = []
    for count in facts["datasets"]:
        drops = Drops.restored(count["drops"]["counts"], count["drops"]["places"])
        counters = {name: Counter(count[name]) for name in ("formats", "notes", "unused")}
        counts.append(DatasetCount(**{**count, **counters, "drops": drops}))
    return DataReport(
        counts, remarks=facts["remarks"], duplicates=facts["duplicates"], val_in_train=facts["val_in_train"]
    )
