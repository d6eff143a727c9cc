"""Rows for models that classify, embed or rank -> the texts of each row as ids, and what is to be learned of them.

Promises: a row's texts are encoded as the chat encoder encodes whole conversations; each row is used or dropped with a
reason in the report. Labels: the number of a class, a list of numbers (several classes at once), or a float.
Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swift.chat import ChatEncoder, RowDropped
from swift.data.plain import PlainEncoder
from swift.data.report import DataReport, SplitCount
from swift.data.rows import RowError, Rows
from swift.errors import DataError, SwiftError, UsageError

QUERY, POSITIVE, NEGATIVE = 0, 1, 2


@dataclass(frozen=True)
class Labels:
    """What the labels of a task mean. `problem` is one of transformers' problem types; `names` are the classes' names,
    () when the rows number them."""

    problem: str
    count: int
    names: tuple[str, ...] = ()

    def value(self, label: Any) -> int | float | list[float]:
        """A row's label as a class number, a list of `count` numbers, or a float; RowError for one that doesn't fit."""
        if self.problem == "regression":
            values = label if isinstance(label, list) else [label]
            if len(values) != self.count or not all(_is_number(v) for v in values):
                raise RowError("the label is not a number" + f" for each of {self.count} outputs" * (self.count > 1))
            return [float(v) for v in values]
        if self.problem == "multi_label_classification":
            chosen = [self._number(item) for item in (label if isinstance(label, list) else [label])]
            return [float(n in chosen) for n in range(self.count)]
        return self._number(label)

    def _number(self, label: Any) -> int:
        if isinstance(label, str):
            if label not in self.names:
                known = ", ".join(self.names[:8]) or "numbers from 0"
                raise RowError("a label that is none of the classes", f"{label!r}; they are {known}")
            return self.names.index(label)
        if not isinstance(label, (bool, int)) or not 0 <= int(label) < self.count:
            raise RowError("a label that is none of the classes", f"{label!r} of {self.count}")
        return int(label)


def labels_of(rows: Rows, count: int | None, problem: str | None, names: Sequence[str] = ()) -> Labels:
    """What the rows' labels mean, as far as it isn't given; UsageError for labels of different kinds."""
    found = [row["label"] for row in rows if "label" in row]
    if not found:
        raise DataError("no row has a label", where="--dataset", fix="add a column label, or map yours with --columns")
    if problem is None:
        problem = _problem(found, count)
    if problem == "regression":
        return Labels(problem, count or max(len(label) if isinstance(label, list) else 1 for label in found))
    single = [item for label in found for item in (label if isinstance(label, list) else [label])]
    if not names and any(isinstance(item, str) for item in single):
        names = sorted({item for item in single if isinstance(item, str)})
    seen = len(names) or 1 + max((int(item) for item in single if isinstance(item, (bool, int))), default=0)
    if count is not None and seen > count:
        fix = f"--num_labels {seen}"
        raise UsageError(f"the rows' labels are of {seen} classes", where=f"--num_labels {count}", fix=fix)
    return Labels(problem, count or max(seen, 2), tuple(names))


def _problem(labels: Sequence[Any], count: int | None) -> str:
    kinds = {"list" if isinstance(x, list) else "float" if isinstance(x, float) else "class" for x in labels}
    if "list" in kinds:
        if kinds != {"list"}:
            raise UsageError("some labels are lists and some are not", fix="say what they are with --problem_type")
        return "multi_label_classification"
    return "regression" if "float" in kinds or count == 1 else "single_label_classification"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Texts:
    """A row's texts: ids of each, its role (QUERY, POSITIVE, NEGATIVE), and the label (None without one)."""

    ids: list[list[int]]
    roles: list[int]
    label: Any = None


class HeadEncoder:
    """Encodes rows for one task. `labels` is None for embedding and reranker."""

    def __init__(
        self,
        encoder: ChatEncoder | PlainEncoder,
        task: str,
        *,
        labels: Labels | None = None,
        loss: str | None = None,
        max_length: int | None = None,
        strategy: str = "delete",
    ):
        self.encoder, self.task, self.labels, self.loss = encoder, task, labels, loss
        self.max_length, self.strategy = max_length, strategy

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoder.decode(ids)

    def encode(self, row: Mapping[str, Any]) -> tuple[Texts, bool]:
        """(the row's texts, whether one was cut); RowError, DataError or TemplateError for a row that can't be used."""
        if self.task == "seq_cls":
            assert self.labels is not None
            if "label" not in row:
                raise RowError("no label")
            return self._texts([row], [QUERY], self.labels.value(row["label"]))
        pairs = [(POSITIVE, c) for c in row.get("positive_messages", ())]
        pairs += [(NEGATIVE, c) for c in row.get("negative_messages", ())]
        if not pairs or pairs[0][0] != POSITIVE:
            raise RowError("nothing that belongs with the query", "a column positive (or positive_messages, pos)")
        if self.task == "reranker":
            if self.loss == "listwise_reranker" and pairs[-1][0] != NEGATIVE:
                raise RowError("nothing to rank the positive above", "a column negative (or negative_messages, neg)")
            return self._texts([ranked(row, c) for _, c in pairs], [role for role, _ in pairs])
        label = None
        if self.loss == "cosine_similarity":
            label = row.get("label")
            if not _is_number(label):
                raise RowError("no similarity", "--loss_type cosine_similarity learns the number in label or score")
            pairs = pairs[:1]
        texts = [row, *({"messages": c} for _, c in pairs)]
        return self._texts(texts, [QUERY, *(role for role, _ in pairs)], label)

    def _texts(self, rows: Sequence[Mapping[str, Any]], roles: list[int], label: Any = None) -> tuple[Texts, bool]:
        ids = [self.encoder.read_only(row) for row in rows]
        if not all(ids):
            raise RowError("a text without a token")
        limit = self.max_length
        if limit is None or all(len(one) <= limit for one in ids):
            return Texts(ids, roles, label), False
        if self.strategy not in ("left", "right"):
            raise RowDropped("too_long", max(map(len, ids)), limit)
        cut = [one[:limit] if self.strategy == "right" else one[-limit:] for one in ids]
        return Texts(cut, roles, label), True


def ranked(row: Mapping[str, Any], candidate: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conversation that a reranker reads: the query, and the document as its answer."""
    first, *rest = candidate
    if first["role"] == "user" and not rest:
        first = {**first, "role": "assistant"}
    return {**row, "messages": [*row["messages"], first, *rest]}


class HeadDataset(Sequence[dict[str, Any]]):
    """Encoded rows: {"texts": [int64 arrays], "roles": [int], "label": ..., "row_id": int}.

    lengths int64 [rows]: tokens of all texts of a row; trained int64 [rows]: one each, what is learned is one value.
    """

    def __init__(self, rows: Sequence[tuple[int, Texts]]):
        self._rows = rows
        self.row_ids = np.array([row_id for row_id, _ in rows], np.int64)
        self.lengths = np.array([sum(map(len, texts.ids)) for _, texts in rows], np.int64)
        self.trained = np.ones(len(rows), np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row_id, texts = self._rows[i]
        ids = [np.asarray(one, np.int64) for one in texts.ids]
        return {"texts": ids, "roles": texts.roles, "label": texts.label, "row_id": row_id}

    @property
    def has_negatives(self) -> bool:
        return any(NEGATIVE in texts.roles for _, texts in self._rows)

    def fingerprint(self) -> str:
        """A hash that changes with any id, role, label or the order."""
        digest = hashlib.sha256()
        for _, texts in self._rows:
            digest.update(json.dumps([texts.ids, texts.roles, texts.label]).encode())
        return digest.hexdigest()


def encode_heads(rows: Rows, encoder: HeadEncoder, report: DataReport, split: str) -> HeadDataset:
    """All rows in order; what can't be used is counted in `report.split(split)` with its place."""
    count, found = SplitCount(split), []
    for row in rows:
        count.rows += 1
        try:
            texts, cut = encoder.encode(row)
        except (RowError, SwiftError) as error:
            count.drops.add(*_reason(error), row.source)
            continue
        count.used += 1
        if cut:
            count.truncated.add("", f"--truncation_strategy {encoder.strategy}", row.source)
        found.append((row.index, texts))
    dataset = HeadDataset(found)
    count.lengths, count.trained = dataset.lengths, dataset.trained
    report.splits[split] = count
    return dataset


def _reason(error: RowError | SwiftError) -> tuple[str, str]:
    from swift.data.encode import why_dropped

    return (error.reason, error.detail) if isinstance(error, RowError) else why_dropped(error)


class HeadCollator:
    """Rows -> one padded batch of all their texts (padding on the right).

    input_ids, attention_mask int64 [texts, length]; roles, row_of int64 [texts]; targets: int64 [rows] classes,
    float32 [rows, labels] or [rows] numbers, absent without labels; row_ids list[int].
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        texts = [ids for row in rows for ids in row["texts"]]
        shape = (len(texts), max(map(len, texts)))
        ids, mask = np.full(shape, self.pad_token_id, np.int64), np.zeros(shape, np.int64)
        for i, one in enumerate(texts):
            ids[i, : len(one)], mask[i, : len(one)] = one, 1
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "roles": torch.tensor([role for row in rows for role in row["roles"]]),
            "row_of": torch.tensor([i for i, row in enumerate(rows) for _ in row["roles"]]),
        }
        labels = [row["label"] for row in rows]
        if labels[0] is not None:
            whole = isinstance(labels[0], int)
            batch["targets"] = torch.tensor(labels, dtype=torch.int64 if whole else torch.float32)
        batch["row_ids"] = [row["row_id"] for row in rows]
        return batch
