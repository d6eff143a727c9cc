"""Older spellings that stand for one or more options of today: flags of the guide and of ms-swift 2 to 4.

Plain renames stand beside their option (`option(aliases=...)`); here are those that also change the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Values = dict[str, Any]


def _when_true(**values: Any) -> Callable[[bool], Values]:
    return lambda on: dict(values) if on else {}


def _use_flash_attn(on: bool) -> Values:
    return {"attn_impl": "flash_attention_2"} if on else {"attn_impl": "sdpa"}


# name -> function of the (boolean) value that gives the options meant
REWRITES: dict[str, Callable[[bool], Values]] = {
    "use_flash_attn": _use_flash_attn,
    "load_in_8bit": _when_true(quant_method="bnb", quant_bits=8),
    "load_in_4bit": _when_true(quant_method="bnb", quant_bits=4),
}
