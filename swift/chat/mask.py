"""What is learned in a row, as text: the material of a mask viewer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from swift.chat.encoded import IGNORED
from swift.chat.encoder import ChatEncoder


def render_mask(encoder: ChatEncoder, row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The row's text in order, cut where learning starts and stops: (text, learned). Raises what `encode` raises."""
    encoded = encoder.encode(row)
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    groups = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return [(encoder.decode([token for token, _ in group]), learned) for learned, group in groups]
