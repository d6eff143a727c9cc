"""Encoded rows on disk: a second run with the same rows, tokenizer, template and options reads them in seconds.

Promises: an entry is complete or not there (written aside, then renamed: safe against kills); of several runs or ranks
that want the same entry one makes it and the others wait; it is found again only when everything that the ids depend on
is equal, this program's own encoding code included; a damaged entry is made anew. Arrays are written while rows are
encoded, so memory stays flat. Entries that no run has read for `KEEP_DAYS` are removed. Media are not cached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from swift import chat, runs
from swift.chat import ChatEncoder
from swift.data.encode import Encoder, encode_rows
from swift.data.encoded import EncodedDataset
from swift.data.plain import PlainEncoder
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Rows
from swift.data.tally import Drops
from swift.errors import ResourceError

log = logging.getLogger("swift")

KEEP_DAYS = 30
COUNT = "count.json"
_DROPS = ("drops", "truncated", "lost_end")
_STALE_SECONDS = 24 * 3600  # a staging directory of this age belongs to a run that was killed
_CODE = ("encode.py", "encoded.py", "plain.py")  # beside swift/chat, what ids and labels depend on


def encoder_facts(encoder: ChatEncoder | PlainEncoder) -> dict[str, Any] | None:
    """What the encoder's ids and labels depend on; None when that can't be told (a tokenizer without a Rust part)."""
    if isinstance(encoder, PlainEncoder):
        inner = encoder_facts(encoder.encoder)
        return inner and inner | {"template": None, "plain": True, "system": encoder.system}
    tokenizer, processor = encoder.tokenizer, encoder.processor
    if not tokenizer.is_fast:
        return None
    template = encoder.template or tokenizer.chat_template or (processor and processor.chat_template)
    options = {k: v for k, v in vars(encoder).items() if k[0] != "_" and k not in ("tokenizer", "processor")}
    return {
        **options,
        "scheme": repr(encoder.scheme),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": template,
        "stop_token_ids": encoder.stop_token_ids if template else [],
        "today": str(date.today()) if "strftime" in str(template) else None,
    }


def encoder_key(encoder: ChatEncoder | PlainEncoder) -> str | None:
    """A text that changes with whatever the encoder's ids and labels depend on; None: see `encoder_facts`."""
    facts = encoder_facts(encoder)
    return facts and json.dumps(facts | {"code": _code_digest()}, sort_keys=True, default=str)


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in (*sorted(Path(chat.__file__).parent.glob("*.py")), *map(Path(__file__).with_name, _CODE)):
        digest.update(path.read_bytes())
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
    entry = root / hashlib.sha256(f"{key} {rows.digest()}".encode()).hexdigest()[:32]
    found = _read(entry, report, split)
    if found is not None:
        return found
    try:
        runs.ensure_writable_dir(root)
        with runs.one_at_a_time(entry, lambda: log.info("another process encodes the same rows: waiting for it")):
            found = _read(entry, report, split)
            return _make(entry, rows, encoder, report, split, num_proc) if found is None else found
    except _NotCached as error:
        report.remarks.append(f"encoded rows are not cached: {error}")
    except ResourceError as error:
        if not str(error.where).startswith(str(root)):
            raise
        report.remarks.append(f"encoded rows are not cached: {error.what}")
    return encode_rows(rows, encoder, report=report, split=split, num_proc=num_proc)


class _NotCached(Exception):
    """The disk didn't take the entry."""


def _make(entry: Path, rows: Rows, encoder: Encoder, report: DataReport, split: str, num_proc: int | None):
    """Encode into a staging directory and rename it; of media, which aren't cached, the arrays stay mapped."""
    prune(entry.parent)
    staging = Path(tempfile.mkdtemp(prefix=f"{runs.STAGING_PREFIX}{entry.name}-", dir=entry.parent))
    try:
        encoded = encode_rows(rows, encoder, report=report, split=split, num_proc=num_proc, directory=staging)
        if encoded.media:
            return encoded
        write_count(staging, report.split(split))
        runs.write_manifest(staging)
        if entry.exists() and runs.verify_dir(entry, hashes=False):
            shutil.rmtree(entry, ignore_errors=True)
        if not entry.is_dir():
            os.rename(staging, entry)
            runs.fsync_dir(entry.parent)
        return EncodedDataset.load(entry)
    except OSError as error:
        raise _NotCached(error.strerror or str(error)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read(entry: Path, report: DataReport, split: str) -> EncodedDataset | None:
    if not entry.is_dir() or runs.verify_dir(entry, hashes=False):
        return None
    encoded = EncodedDataset.load(entry)
    report.splits[split] = read_count(entry, split, encoded)
    report.remarks.append(f"{split}: encoded rows read from the cache ({entry})")
    os.utime(entry)
    return encoded


def prune(root: Path) -> None:
    """Remove entries that no run has read for KEEP_DAYS, and what killed runs left."""
    now = time.time()
    for path in root.iterdir():
        age = now - path.stat().st_mtime
        if age > (_STALE_SECONDS if path.name.startswith(runs.STAGING_PREFIX) else KEEP_DAYS * 24 * 3600):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_count(directory: Path, count: SplitCount) -> None:
    """Save what became of the rows beside the arrays."""
    drops = {name: [getattr(count, name).counts, getattr(count, name).places] for name in _DROPS}
    facts = {"rows": count.rows, "used": count.used, "extra": count.extra, "notes": count.notes, **drops}
    runs.write_json(directory / COUNT, facts)


def read_count(directory: Path, split: str, encoded: EncodedDataset) -> SplitCount:
    facts = json.loads((directory / COUNT).read_text(encoding="utf-8"))
    drops = {}
    for name in _DROPS:
        drops[name] = Drops.restored(*facts[name])
    numbers = {name: facts[name] for name in ("rows", "used", "extra")}
    notes = Counter(facts["notes"])
    return SplitCount(split, **numbers, **drops, notes=notes, lengths=encoded.lengths, trained=encoded.trained)
