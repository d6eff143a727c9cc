"""A data set in figures: how many rows, how long they are in tokens, how much of them is learned; from a sample, in a
second.

Promises: downloads nothing. What is not on this machine is taken from the catalog's count, and said to be. Rows are
counted by lines where the format has lines; tokens by the model's tokenizer.json where there is one, else from the
text's characters; what an image takes by the processor's settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from swift.advise.sight import Sight
from swift.catalog import find_dataset
from swift.data.formats import ColumnMap, canonical_row
from swift.data.read import Broken, file_format, read_file
from swift.data.rows import RowError
from swift.data.spec import DatasetSpec, parse_spec
from swift.errors import DataError
from swift.hub import local, resolve_dataset
from swift.hub.names import HUB_ID, expand, looks_like_path

SAMPLE = 1000
TOKENIZED = 100
ASSUMED_TOKENS = 300
PER_MESSAGE = 5  # tokens that a chat template puts around a message
PER_ROW = 20  # a default system prompt, roughly


@dataclass(frozen=True)
class RowFacts:
    """`lengths`: tokens of sampled rows, ascending. `answer_share`: share of the tokens that assistants speak. `exact`:
    every row was looked at. `note`: what the figures rest on. `assumed`: there are no rows, only figures."""

    rows: int
    lengths: tuple[int, ...]
    answer_share: float
    exact: bool
    note: str = ""
    assumed: bool = False

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    def mean(self, most: int) -> float:
        """Mean length when longer rows are cut at `most` tokens."""
        return sum(min(n, most) for n in self.lengths) / len(self.lengths)

    def mean_of_longest(self, batch: int, most: int) -> float:
        """Expected length of the longest of `batch` random rows: what a padded batch is wide."""
        count = len(self.lengths)
        ranks = (((i + 1) / count) ** batch - (i / count) ** batch for i in range(count))
        return sum(min(n, most) * weight for n, weight in zip(self.lengths, ranks, strict=True))


def assumed(rows: int, tokens: int, exact: bool, note: str = "") -> RowFacts:
    """Rows of one length, for a plan without data; `exact`: none is longer."""
    return RowFacts(rows, (tokens,), 1.0, exact, note, assumed=True)


def row_facts(
    words: Sequence[str],
    *,
    dataset_dir: str | None,
    use_hf: bool,
    columns: dict | None,
    tokenizer: Path | None,
    sight: Sight | None = None,
) -> RowFacts:
    """The facts of all data sets of `--dataset` together; DataError when one is on this machine and can't be read.
    `sight`: what a model that sees or hears makes of media; None for a model of text."""
    parts = [_one(word, dataset_dir, use_hf, columns, tokenizer, sight) for word in words]
    total = sum(part.rows for part in parts)
    lengths = sorted(n for part in parts for n in _weighted(part, total))
    share = sum(part.answer_share * part.rows for part in parts) / total
    notes = [part.note for part in parts if part.note]
    exact, invented = all(part.exact for part in parts), all(part.assumed for part in parts)
    return RowFacts(total, tuple(lengths), share, exact, "; ".join(notes), invented)


def _weighted(part: RowFacts, total: int) -> Iterator[int]:
    """Up to 200 of a part's lengths, evenly, in proportion to its rows."""
    count = max(1, round(200 * part.rows / total))
    for i in range(count):
        yield part.lengths[min(len(part.lengths) - 1, int((i + 0.5) * len(part.lengths) / count))]
    yield part.longest


def is_local(spec: DatasetSpec, dataset_dir: str | None, use_hf: bool) -> bool:
    """Whether the rows are on this machine, so that resolving the name needs no network."""
    if expand(spec.name).exists():
        return True
    entry = find_dataset(spec.name)
    names = [spec.name, *(n for n in (entry and entry.ms_id, entry and entry.hf_id) if n)]
    if any(local.in_collection(local.collection(dataset_dir, local.DATASET_DIR, "datasets"), names)):
        return True
    if entry is not None and entry.file is not None:
        return True
    hub_id = (entry.hub_id(use_hf) if entry else None) or spec.name
    return any(local.cached_snapshots("datasets", hub_id, use_hf=use_hf))


def _one(
    word: str,
    dataset_dir: str | None,
    use_hf: bool,
    columns: dict | None,
    tokenizer: Path | None,
    sight: Sight | None,
) -> RowFacts:
    spec = parse_spec(word)
    use_hf = spec.use_hf if spec.use_hf is not None else use_hf
    if not is_local(spec, dataset_dir, use_hf):
        entry = find_dataset(spec.name)
        if entry is None and (looks_like_path(spec.name) or HUB_ID.match(spec.name) is None):
            resolve_dataset(
                spec.name, dataset_dir=dataset_dir, use_hf=use_hf, subsets=spec.subsets
            )  # raises what to say
        rows = spec.rows or (entry.rows if entry else None) or 1000
        note = f"{spec.name} is not on this machine: {ASSUMED_TOKENS} tokens a row are assumed"
        return assumed(rows, ASSUMED_TOKENS, exact=False, note=note)
    data = resolve_dataset(spec.name, dataset_dir=dataset_dir, use_hf=use_hf, subsets=spec.subsets)
    mapping = ColumnMap({**(dict(data.entry.columns) if data.entry else {}), **(columns or {})})
    texts, seen, ended = _sample(data.files, mapping, sight)
    if not texts:
        raise DataError("none of the first rows can be used", where=word, fix="swift doctor --dataset shows why")
    total = seen if ended else max(seen, sum(count_rows(path, seen) for path in data.files))
    rows = spec.rows or total
    lengths = sorted(_tokens(texts, tokenizer))
    answers = sum(len(text.answers) for text in texts)
    share = answers / max(1, sum(len(text.whole) for text in texts))
    share *= 1.0 - sum(text.media for text in texts) / max(1, sum(lengths))
    how = "" if ended else f"lengths from the first {len(texts)} rows"
    return RowFacts(rows, tuple(lengths), min(1.0, share), ended, how)


class Text(NamedTuple):
    """All text of a row, what assistants say of it, the number of messages, and tokens of its media."""

    whole: str
    answers: str
    messages: int
    media: int = 0


def _sample(files: Sequence[Path], columns: ColumnMap, sight: Sight | None) -> tuple[list[Text], int, bool]:
    """(texts of usable rows among the first, rows looked at, whether those were all)."""
    texts, seen = [], 0
    for path in files:
        for value, _ in read_file(path):
            if seen == SAMPLE:
                return texts, seen, False
            seen += 1
            if isinstance(value, Broken):
                continue
            try:
                row = canonical_row(value, columns=columns, folder=path.parent, need_response=False).data
            except RowError:
                continue
            media = sight.row(row, path.parent) if sight is not None else 0
            texts.append(_text(row)._replace(media=media))
    return texts, seen, True


def _text(row: dict[str, Any]) -> Text:
    if "text" in row:
        return Text(row["text"], row["text"], 0)
    messages = row["messages"]
    spoken = [str(m.get("reasoning_content") or "") + str(m.get("content") or "") for m in messages]
    answers = [text for m, text in zip(messages, spoken, strict=True) if m["role"] == "assistant"]
    return Text("\n".join(spoken), "\n".join(answers), len(messages))


def count_rows(path: Path, seen: int) -> int:
    """Rows of a file: its lines, parquet's own count, or (for one JSON document) what its size suggests."""
    kind = file_format(path)
    if kind == "parquet":
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).metadata.num_rows
    if kind in ("jsonl", "ndjson", "csv", "tsv", "txt"):
        with open(path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    import itertools
    import json

    values = [value for value, _ in itertools.islice(read_file(path), min(seen, 200))]
    each = sum(len(json.dumps(v, ensure_ascii=False).encode()) for v in values if not isinstance(v, Broken)) / max(
        1, len(values)
    )
    return max(len(values), round(path.stat().st_size / max(1.0, each * 1.1)))


def _tokens(texts: Sequence[Text], tokenizer: Path | None) -> list[int]:
    """Tokens of each text: characters times the rate that the tokenizer has on some of them."""
    chosen = [texts[i * len(texts) // TOKENIZED] for i in range(TOKENIZED)] if len(texts) > TOKENIZED else list(texts)
    guesses = [rough_tokens(text.whole) for text in chosen]
    rate = 1.0
    if tokenizer is not None:
        from tokenizers import Tokenizer

        counts = [
            len(e.ids)
            for e in Tokenizer.from_file(str(tokenizer)).encode_batch(
                [text.whole for text in chosen], add_special_tokens=False
            )
        ]
        rate = sum(counts) / max(1.0, sum(guesses))
    return [
        math.ceil(rough_tokens(text.whole) * rate)
        + PER_MESSAGE * text.messages
        + PER_ROW * (text.messages > 0)
        + text.media
        for text in texts
    ]


def rough_tokens(text: str) -> float:
    """Tokens by character: about four Latin letters to one, three Chinese characters to two."""
    wide = sum(ord(c) > 0x2E80 for c in text)
    return wide * 0.67 + (len(text) - wide) / 4
