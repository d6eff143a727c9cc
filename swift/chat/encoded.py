"""The outcomes of encoding a row: `Encoded`, or `RowDropped` with a reason that the data report counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swift.errors import DataError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training row.

    input_ids, labels: same length; a label is the id itself where it is learned, else -100 (not shifted).
    loss_scale: one weight per token, or None when every learned token weighs 1.
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

    input_ids: list[int]
    labels: list[int]
    loss_scale: list[float] | None = None
    truncated: bool = False
    lost_end: bool = False
    notes: tuple[str, ...] = ()
    media: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        return len(self.input_ids)

    @property
    def trained(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels)


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
