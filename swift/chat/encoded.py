"""The outcomes of encoding a row: `Encoded`, or `RowDropped` with a reason that the data report counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from swift.errors import DataError

IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One training row; `input_ids`, `labels` and `loss_scale` give it as lists.

    ids int32 [tokens]; learned bool [tokens]; scales float64 [tokens], one weight per token, or None when every learned
    token weighs 1. They may be views of a whole batch: not to be written into.
    truncated: tokens were cut off. lost_end: a learned turn lost its end-of-turn token to the cut.
    notes: short codes of what else happened, for the data report:
      "straddled"             a token reaches over a border of the reply, or its prompt alone has others
      "history"               an earlier turn is learned as history shows it, not as it is generated
      "no_end"                the template writes no end-of-turn after a learned turn
      "reasoning_left_out"    the template doesn't show a reasoning that the row has
      "non_thinking"          replies without reasoning, rendered in the template's non-thinking mode
      "tools_left_out"        the template doesn't show the row's tools
      "part"                  one of several rows made from one conversation
      "part_too_long"         another part of the conversation was dropped because it is longer than max_length
      "part_nothing_left"     another part of the conversation had no learned token left after its cut
      "composed"              a last turn behind its generation prompt, which the template renders only apart
    media: what the row's pixel values and the like are made from: `text`, the rendering, and its media by list; None
    for a row of text.
    """

    ids: np.ndarray
    learned: np.ndarray
    scales: np.ndarray | None = None
    truncated: bool = False
    lost_end: bool = False
    notes: tuple[str, ...] = ()
    media: dict[str, Any] | None = None

    @classmethod
    def of(
        cls, input_ids: Sequence[int], labels: Sequence[int], loss_scale: Sequence[float] | None = None, **more: Any
    ) -> Encoded:
        """From lists of the same length; ValueError for a label that is neither its token's id nor -100."""
        ids, given = np.array(input_ids, np.int32), np.array(labels, np.int32)
        learned = given != IGNORED
        if len(ids) != len(given) or not np.array_equal(given[learned], ids[learned]):
            raise ValueError("labels that are not their ids")
        return cls(ids, learned, None if loss_scale is None else np.array(loss_scale, np.float64), **more)

    @property
    def input_ids(self) -> list[int]:
        return self.ids.tolist()

    @property
    def labels(self) -> list[int]:
        """The id itself where it is learned, else -100; not shifted."""
        return np.where(self.learned, self.ids, IGNORED).tolist()

    @property
    def loss_scale(self) -> list[float] | None:
        return None if self.scales is None else self.scales.tolist()

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """How many tokens are learned."""
        return int(np.count_nonzero(self.learned))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoded):
            return NotImplemented
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b or a == b
            for a, b in pairs
        )

    __hash__ = None


class RowDropped(DataError):
    """A row that isn't used, on purpose. reason: "too_long", "nothing_left" (the cut left no learned token)."""

    def __init__(self, reason: str, length: int, max_length: int):
        fix = "raise --max_length, or choose another --truncation_strategy"
        what = {
            "too_long": f"the row has {length} tokens, more than --max_length {max_length}",
            "nothing_left": f"no learned token is left after cutting {length} tokens to --max_length {max_length}",
        }[reason]
        super().__init__(what, fix=fix)
        self.reason, self.length, self.max_length = reason, length, max_length

    def __reduce__(self):
        return RowDropped, (self.reason, self.length, self.max_length)
