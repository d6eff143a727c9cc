"""Encoded examples -> padded batches of torch tensors. Knows nothing of where the examples come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from swift.chat import IGNORED


class PadCollator:
    """Pad to the longest example of the batch.

    Returns input_ids, labels, attention_mask: int64 [batch, length], length a multiple of `pad_to_multiple_of`;
    loss_scale: float32 [batch, length] (0 on padding, 1 in examples without it) when an example has it. With
    `with_row_ids`, row_ids: list[int], one per example.
    `padding_side`: "right" or "left".
    """

    def __init__(
        self,
        pad_token_id: int,
        pad_to_multiple_of: int | None = None,
        *,
        padding_side: str = "right",
        with_row_ids: bool = False,
    ):
        self.pad_token_id, self.multiple = pad_token_id, pad_to_multiple_of or 1
        self.padding_side, self.with_row_ids = padding_side, with_row_ids

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(example["input_ids"]) for example in examples)
        length = -(-longest // self.multiple) * self.multiple
        shape = (len(examples), length)
        batch = {
            "input_ids": np.full(shape, self.pad_token_id, np.int64),
            "labels": np.full(shape, IGNORED, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
        }
        if any("loss_scale" in example for example in examples):
            batch["loss_scale"] = np.zeros(shape, np.float32)
        for i, example in enumerate(examples):
            size = len(example["input_ids"])
            place = slice(0, size) if self.padding_side == "right" else slice(length - size, length)
            batch["attention_mask"][i, place] = 1
            for name in batch.keys() - {"attention_mask"}:
                batch[name][i, place] = example.get(name, 1.0)
        tensors: dict[str, Any] = {name: torch.from_numpy(values) for name, values in batch.items()}
        if self.with_row_ids:
            tensors["row_ids"] = [example["row_id"] for example in examples]
        return tensors
