"""The chat templates inside the installed trl package, each with a tiny tokenizer that knows its control tokens."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from tests.tiny import tokenizer

_CONTROL = re.compile(
    r"<\|[^|>\s'+]+\|>|<｜[^｜']+｜>|</?[a-zA-Z_:]+>|\[/?[A-Z_]+\]|\[\|[a-z]+\|\]|<\|[a-z_]+>|<[a-z_]+\|>|<\|\"\|>"
)
_SPEC = find_spec("trl")
_FILES = sorted((Path(_SPEC.origin).parent / "chat_templates").glob("*.jinja")) if _SPEC else []
TRAINING = {path.stem.removesuffix("_training"): path for path in _FILES if path.stem.endswith("_training")}
ORIGINAL = {path.stem: path for path in _FILES if not path.stem.endswith("_training")}


def control_tokens(source: str) -> set[str]:
    """The control tokens that the text of a template names."""
    return set(_CONTROL.findall(source))


def fitted(source: str):
    """The tiny tokenizer with the template and every control token that its text names."""
    tok = tokenizer(source)
    tok.add_tokens(sorted({*control_tokens(source), "<s>", "</s>"}), special_tokens=True)
    tok.bos_token = "<s>"
    tok.model_max_length = 10**9
    return tok


def as_blocks(row: dict) -> dict:
    """The row with its contents as typed blocks."""
    messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in row["messages"]]
    return {**row, "messages": messages}
