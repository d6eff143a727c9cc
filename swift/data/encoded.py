"""Encoded examples in flat arrays: in memory, or in mapped files, so that a data set may be larger than memory.

Promises: an example comes back with the ids, labels and weights that it was added with; a label is the token's own id
or -100. About five bytes a token. Knows nothing of rows, templates and padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swift.chat import IGNORED, Encoded

# array -> dtype; in a directory each is a file NAME.bin of plain little-endian values
ARRAYS: dict[str, Any] = {
    "ids": np.dtype("<i4"),
    "learned": np.dtype(np.bool_),
    "starts": np.dtype("<i8"),
    "row_ids": np.dtype("<i8"),
    "trained": np.dtype("<i8"),
    "scales": np.dtype("<f4"),
}


_NO_IDS, _NOT_LEARNED = np.empty(0, np.int32), np.empty(0, np.bool_)


class EncodedDataset(Sequence[dict[str, Any]]):
    """Examples in flat arrays.

    ids int32 [tokens]; learned bool [tokens]; starts int64 [examples + 1]; row_ids int64 [examples]; trained
    int64 [examples], learned tokens of each; scales float32 [tokens] or None when every learned token weighs 1;
    media: of the examples that have some, by number, what their tensors are made from.
    """

    def __init__(
        self,
        ids: np.ndarray,
        learned: np.ndarray,
        starts: np.ndarray,
        row_ids: np.ndarray,
        trained: np.ndarray,
        scales: np.ndarray | None = None,
        media: dict[int, dict[str, Any]] | None = None,
    ):
        self.ids, self.learned, self.starts = ids, learned, starts
        self.row_ids, self.trained, self.scales = row_ids, trained, scales
        self.media = media or {}
        self.lengths: np.ndarray = np.diff(starts)

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """input_ids, labels: int64 [length]; row_id: int; loss_scale: float32 [length] when there are weights; media:
        the text and the media of the row (`Encoded.media`) when it has some."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        a, b = self.starts[i % len(self)], self.starts[i % len(self) + 1]
        ids = self.ids[a:b].astype(np.int64)
        labels = np.where(self.learned[a:b], ids, IGNORED)
        example = {"input_ids": ids, "labels": labels, "row_id": int(self.row_ids[i])}
        if self.scales is not None:
            example["loss_scale"] = np.array(self.scales[a:b])
        if i % len(self) in self.media:
            example["media"] = self.media[i % len(self)]
        return example

    def fingerprint(self) -> str:
        """A hash that changes with any id, label, weight, name of a medium or the order."""
        digest = hashlib.sha256()
        for part in (self.ids, self.learned, self.starts, self.row_ids, self.scales):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
        if self.media:
            digest.update(json.dumps(sorted(self.media.items()), default=str).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Write the arrays as a `Builder` with this directory would."""
        for name, kind in ARRAYS.items():
            if (values := getattr(self, name)) is not None:
                np.ascontiguousarray(values, kind).tofile(directory / f"{name}.bin")

    @classmethod
    def load(cls, directory: Path) -> EncodedDataset:
        """Map the arrays that a `Builder` wrote into `directory`."""
        return cls(**{name: _mapped(directory / f"{name}.bin", kind) for name, kind in ARRAYS.items()})

    @classmethod
    def joined(cls, parts: Sequence[EncodedDataset], row_offsets: Sequence[int]) -> EncodedDataset:
        """The examples of all parts in order, in memory; each part's row ids are raised by its offset."""
        builder = Builder()
        for part, offset in zip(parts, row_offsets, strict=True):
            moved = EncodedDataset(
                part.ids, part.learned, part.starts, part.row_ids + offset, part.trained, part.scales, part.media
            )
            builder.join(moved)
        return builder.finish()


def _mapped(path: Path, kind: np.dtype) -> np.ndarray | None:
    if not path.is_file():
        return None
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


class _Column:
    """Values of one array that grows: in memory, or in a file."""

    def __init__(self, name: str, directory: Path | None):
        self.kind, self.count = ARRAYS[name], 0
        self.path = None if directory is None else directory / f"{name}.bin"
        self._bytes = bytearray()
        if self.path is not None:
            self.path.touch()

    def extend(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self.kind).data.cast("B") if len(values) else b""
        self.count += len(values)
        if self.path is None:
            self._bytes += data
        else:
            with open(self.path, "ab") as file:
                file.write(data)

    def finish(self) -> np.ndarray:
        if self.path is None:
            return np.frombuffer(self._bytes, self.kind)
        return _mapped(self.path, self.kind)


class Builder:
    """Arrays that grow batch by batch; with a `directory`, in files there, so that memory stays flat."""

    def __init__(self, directory: Path | None = None):
        self._directory = directory
        self._columns = {name: _Column(name, directory) for name in ARRAYS if name != "scales"}
        self._columns["starts"].extend(np.zeros(1, np.int64))
        self._scales: _Column | None = None
        self._media: dict[int, dict[str, Any]] = {}

    @property
    def tokens(self) -> int:
        return self._columns["ids"].count

    @property
    def examples(self) -> int:
        return self._columns["row_ids"].count

    def add(self, row_ids: Sequence[int], batch: Sequence[Encoded]) -> np.ndarray:
        """Append the examples that have a learned token; bool [batch]: which. row_ids: of each example."""
        sizes = np.array([encoded.length for encoded in batch], np.int64)
        ids = np.concatenate([_NO_IDS, *(encoded.ids for encoded in batch)])
        learned = np.concatenate([_NOT_LEARNED, *(encoded.learned for encoded in batch)])
        ends = np.cumsum(sizes)
        counts = np.concatenate([[0], np.cumsum(learned)])
        trained = counts[ends] - counts[ends - sizes]
        kept = trained > 0
        tokens = slice(None) if kept.all() else np.repeat(kept, sizes)
        chosen = batch if kept.all() else [encoded for encoded, keep in zip(batch, kept.tolist(), strict=True) if keep]
        self._add_scales(chosen)
        self._media |= {self.examples + i: encoded.media for i, encoded in enumerate(chosen) if encoded.media}
        rows = np.asarray(row_ids, np.int64)
        self._extend(ids[tokens], learned[tokens], sizes[kept], rows[kept], trained[kept])
        return kept

    def join(self, part: EncodedDataset) -> None:
        """Append examples encoded elsewhere."""
        if part.scales is not None or self._scales is not None:
            self._weigh(np.ones(len(part.ids), np.float32) if part.scales is None else part.scales)
        self._media |= {self.examples + i: media for i, media in part.media.items()}
        self._extend(part.ids, part.learned, part.lengths, part.row_ids, part.trained)

    def _extend(self, ids, learned, sizes, row_ids, trained) -> None:
        starts = self.tokens + np.cumsum(sizes)
        for name, values in (("ids", ids), ("learned", learned), ("starts", starts), ("trained", trained)):
            self._columns[name].extend(values)
        self._columns["row_ids"].extend(row_ids)

    def _add_scales(self, encoded: Sequence[Encoded]) -> None:
        if self._scales is None and all(e.scales is None for e in encoded):
            return
        parts = [np.ones(e.length) if e.scales is None else e.scales for e in encoded]
        self._weigh(np.concatenate([np.empty(0), *parts]))

    def _weigh(self, scales: np.ndarray) -> None:
        """Append weights; what was added before the first of them weighs 1."""
        if self._scales is None:
            self._scales = _Column("scales", self._directory)
            for start in range(0, self.tokens, 1 << 20):
                self._scales.extend(np.ones(min(1 << 20, self.tokens - start), np.float32))
        self._scales.extend(scales)

    def finish(self) -> EncodedDataset:
        arrays = {name: column.finish() for name, column in self._columns.items()}
        scales = None if self._scales is None else self._scales.finish()
        return EncodedDataset(**arrays, scales=scales, media=self._media)
