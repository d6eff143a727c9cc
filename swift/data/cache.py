"""Encoded rows on disk: a second run with the same rows, tokenizer, template and options reads them in seconds.

Promises: an entry is complete or not there (written aside, then renamed: safe against kills and against several runs
at once); it is found again only when everything that the ids depend on is equal, this program's own encoding code
included; a damaged entry is made anew. Entries that no run has read for `KEEP_DAYS` are removed. Media are not cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from swift import chat, runs
from swift.chat import ChatEncoder
from swift.data.encode import EncodedDataset, Encoder, encode_rows
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Rows
from swift.data.tally import Drops
from swift.errors import ResourceError

KEEP_DAYS = 30
COUNT = "count.json"
_ARRAYS = ("ids", "learned", "starts", "row_ids", "trained", "scales")
_DROPS = ("drops", "truncated", "lost_end")
_STALE_SECONDS = 24 * 3600  # a staging directory of this age belongs to a run that was killed


def encoder_key(encoder: ChatEncoder) -> str:
    """A text that changes with whatever the encoder's ids and labels depend on."""
    tokenizer = encoder.tokenizer
    template = encoder.template or tokenizer.chat_template
    facts = {
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": template,
        "system": encoder.system,
        "loss_scale": encoder.loss_scale,
        "max_length": encoder.max_length,
        "truncation_strategy": encoder.truncation_strategy,
        "response_prefix": encoder.response_prefix,
        "variables": encoder.variables,
        "close_last_turn": encoder.close_last_turn,
        "stop_token_ids": encoder.stop_token_ids if template else [],
        "today": str(date.today()) if "strftime" in str(template) else None,
        "code": _code_digest(),
    }
    return json.dumps(facts, sort_keys=True, default=str)


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in (*sorted(Path(chat.__file__).parent.glob("*.py")), Path(__file__).with_name("encode.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def rows_digest(rows: Rows) -> str:
    """A hash of the rows' content, numbers and places, in order."""
    digest = hashlib.sha256()
    for index in rows.indices:
        digest.update(b"%d %s\n" % (index, str(rows.store.source(int(index))).encode("utf-8", "surrogateescape")))
        digest.update(rows.store.json(int(index)))
    return digest.hexdigest()


def encode_cached(
    rows: Rows,
    encoder: Encoder,
    key: str,
    root: Path,
    *,
    report: DataReport,
    split: str = "train",
    num_proc: int | None = None,
) -> EncodedDataset:
    """`encode_rows`, or its result from an earlier run; `key`: see `encoder_key`; `root`: the cache directory.

    The arrays of the result are memory-mapped. A cache that can't be written to is remarked on, not an error.
    """
    name = hashlib.sha256(f"{key} {rows_digest(rows)}".encode()).hexdigest()[:32]
    entry = root / name
    found = _read(entry, report, split)
    if found is not None:
        report.remarks.append(f"{split}: encoded rows read from the cache ({entry})")
        return found
    encoded = encode_rows(rows, encoder, report=report, split=split, num_proc=num_proc)
    if encoded.media:
        return encoded
    try:
        runs.ensure_writable_dir(root)
        _prune(root)
        _write(entry, encoded, report.split(split))
    except ResourceError as error:
        report.remarks.append(f"encoded rows are not cached: {error.what}")
        return encoded
    return _load(entry)


def _write(entry: Path, encoded: EncodedDataset, count: SplitCount) -> None:
    """Write aside and rename; when another run was faster, its entry stays (it holds the same)."""
    staging = Path(tempfile.mkdtemp(prefix=f"{runs.STAGING_PREFIX}{entry.name}-", dir=entry.parent))
    try:
        for name in _ARRAYS:
            if (values := getattr(encoded, name)) is not None:
                np.save(staging / f"{name}.npy", values)
        runs.write_json(staging / COUNT, _count_json(count))
        runs.write_manifest(staging)
        if entry.exists() and runs.verify_dir(entry, hashes=False):
            shutil.rmtree(entry, ignore_errors=True)
        os.rename(staging, entry)
        runs.fsync_dir(entry.parent)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if not entry.is_dir():
            raise runs.disk_error(error, entry) from error


def _read(entry: Path, report: DataReport, split: str) -> EncodedDataset | None:
    if not entry.is_dir() or runs.verify_dir(entry, hashes=False):
        return None
    count = json.loads((entry / COUNT).read_text(encoding="utf-8"))
    encoded = _load(entry)
    report.splits[split] = _count_from(count, split, encoded)
    os.utime(entry)
    return encoded


def _load(entry: Path) -> EncodedDataset:
    paths = {name: entry / f"{name}.npy" for name in _ARRAYS}
    arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items() if path.is_file()}
    return EncodedDataset(**arrays)


def _prune(root: Path) -> None:
    now = time.time()
    for path in root.iterdir():
        age = now - path.stat().st_mtime
        if age > (_STALE_SECONDS if path.name.startswith(runs.STAGING_PREFIX) else KEEP_DAYS * 24 * 3600):
            shutil.rmtree(path, ignore_errors=True)


def _count_json(count: SplitCount) -> dict[str, Any]:
    drops = {name: [getattr(count, name).counts, getattr(count, name).places] for name in _DROPS}
    return {"rows": count.rows, "used": count.used, "extra": count.extra, "notes": count.notes, **drops}


def _count_from(facts: dict[str, Any], split: str, encoded: EncodedDataset) -> SplitCount:
    drops = {}
    for name in _DROPS:
        counts, places = facts[name]
        drops[name] = Drops(Counter(counts), {k: [(where, detail) for where, detail in v] for k, v in places.items()})
    numbers = {name: facts[name] for name in ("rows", "used", "extra")}
    notes = Counter(facts["notes"])
    return SplitCount(split, **numbers, **drops, notes=notes, lengths=encoded.lengths, trained=encoded.trained)
