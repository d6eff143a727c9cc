"""Batches of examples with images, videos or audio, and of text beside them.

Promises: media are read and made into tensors here, batch by batch (in the workers of the loader), and not kept; the
tensors of a batch are those that the processor makes of its rows, joined: what counts tokens is padded like the ids,
the rest is joined along its first dimension, with zeros where rows differ in size. Names no model family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swift.chat import IGNORED
from swift.chat.processing import Processed, Processing
from swift.data.collate import PadCollator
from swift.errors import DataError

if TYPE_CHECKING:
    import torch


class MediaCollator:
    """`pad` makes the batch of ids and labels; `dtype` (a name in torch) is what pixel values are cast to."""

    def __init__(self, pad: PadCollator, processing: Processing, dtype: str | None = None):
        self.pad, self.processing, self.dtype = pad, processing, dtype

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.pad(examples)
        made = [self._made(example) for example in examples]
        aligned = [{} if one is None else one.token_aligned() for one in made]
        names = dict.fromkeys(name for one in made if one is not None for name in one.tensors)
        counting = {name for one in aligned for name in one}
        for name in names:
            if name in counting:
                batch[name] = self._by_token([one.get(name) for one in aligned], examples, batch["input_ids"])
            else:
                batch[name] = self._joined(name, made, examples)
        for name in self._token_types():
            batch.setdefault(name, batch["input_ids"].new_zeros(batch["input_ids"].shape))
            if self.processing.marks_answers:
                batch[name] = (batch["labels"] != IGNORED).cumsum(dim=1).clamp(max=1) * batch["attention_mask"]
        return batch

    def _made(self, example: Mapping[str, Any]) -> Processed | None:
        if "media" not in example:
            return None
        media = dict(example["media"])
        made = self.processing.run(media.pop("text"), media)
        if made.ids != example["input_ids"][: len(made.ids)].tolist():
            raise DataError("a medium is of another size than when the rows were read", fix="start again")
        return made

    def _by_token(
        self, values: Sequence[Any], examples: Sequence[Mapping[str, Any]], ids: torch.Tensor
    ) -> torch.Tensor:
        """[rows, tokens, ...]: each row's values where its tokens stand, zeros elsewhere."""
        shapes = [value.shape[2:] for value in values if value is not None]
        first = next(value for value in values if value is not None)
        whole = first.new_zeros((*ids.shape, *_largest(shapes)))
        for row, (value, example) in enumerate(zip(values, examples, strict=True)):
            if value is not None:
                start = 0 if self.pad.padding_side == "right" else ids.shape[1] - len(example["input_ids"])
                part = whole[row, start : start + value.shape[1]]
                part[tuple(slice(0, size) for size in value.shape[1:])] = value[0]
        return whole

    def _joined(
        self, name: str, made: Sequence[Processed | None], examples: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """All rows' values, one after the other; a row of text has a place of zeros only where rows are counted."""
        import torch

        values = [None if one is None else one.tensors.get(name) for one in made]
        present = [value for value in values if value is not None]
        if len(present) < len(values) and self._counts_rows(name, made, examples):
            empty = present[0].new_zeros((1, *present[0].shape[1:]))
            present = [empty if value is None else value for value in values]
        shape = _largest([value.shape[1:] for value in present])
        joined = torch.cat([_grown(value, shape) for value in present])
        if self.dtype is not None and joined.is_floating_point():
            joined = joined.to(getattr(torch, self.dtype))
        return joined

    def _counts_rows(self, name: str, made: Sequence[Processed | None], examples: Sequence[Mapping[str, Any]]) -> bool:
        row = next(i for i, one in enumerate(made) if one is not None and name in one.tensors)
        media = dict(examples[row]["media"])
        return name in self.processing.by_row(media.pop("text"), media)

    def _token_types(self) -> list[str]:
        """Kinds of tokens that a model wants to be told also of a batch of text."""
        names = self.processing.processor.model_input_names
        return [name for name in ("token_type_ids",) if name in names]


def _largest(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _grown(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """With zeros behind in every dimension but the first."""
    if tuple(value.shape[1:]) == shape:
        return value
    whole = value.new_zeros((value.shape[0], *shape))
    whole[tuple(slice(0, size) for size in value.shape)] = value
    return whole
