"""A tokenizer as the metadata of a GGUF file: tokens, their kinds, merges or scores, and the name by which llama.cpp
knows how it splits text.

Promises: the name is found from the tokenizer's own splitting rules, compared with those that llama.cpp has; a
tokenizer that splits in a way it doesn't have is refused, since its ids would differ from the source's. Knows
byte-level BPE and SentencePiece's BPE (byte fallback), no Unigram.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift.errors import UsageError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # the format's kinds of tokens
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_QWEN2 = rf"{_SHORT}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_LLAMA3 = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN35 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
# (the steps of the splitting, whether a whole word in the vocabulary is taken without merging) -> llama.cpp's name
PRE: dict[tuple[tuple[tuple[str, Any], ...], bool], str] = {
    ((("bytes", True),), False): "gpt-2",
    ((("digits", True), ("bytes", True)), False): "smollm",
    ((("split", _QWEN2), ("bytes", False)), False): "qwen2",
    ((("split", _QWEN35), ("bytes", False)), False): "qwen35",
    ((("split", _LLAMA3), ("bytes", False)), True): "llama-bpe",
    ((("split", _LLAMA3), ("bytes", False)), False): "dbrx",
}


@dataclass(frozen=True)
class Vocabulary:
    """`model` is "gpt2" or "llama" (SentencePiece), `pre` the name of the splitting; `space_prefix`: a text gets a
    space in front. `scores` for SentencePiece, `merges` for byte-level BPE.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool = False


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The tokenizer for a model with `size` rows of embeddings; UsageError for one that llama.cpp can't follow."""
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it has no Rust part (tokenizer.json)")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model.get("type") != "BPE":
        raise _refused(f"it is {model.get('type')}, not BPE")
    tokens, kinds = _tokens(parts, size)
    if model.get("byte_fallback"):
        _check_steps(parts.get("normalizer"), ("Prepend", "Replace"))
        scores = _scores(model, tokens)
        return Vocabulary("llama", "default", *_spaces(tokens, kinds), scores=scores, space_prefix=_prefixed(parts))
    _check_steps(parts.get("normalizer"), ("NFC",))
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary("gpt2", name_of_splitting(parts), tokens, kinds, merges=merges)


def name_of_splitting(parts: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json; UsageError when it has none."""
    found = tuple(_step(step) for step in _flat(parts.get("pre_tokenizer")))
    name = PRE.get((found, bool(parts["model"].get("ignore_merges"))))
    if name is None:
        raise _refused(f"llama.cpp has no splitting like its own ({', '.join(kind for kind, _ in found) or 'none'})")
    return name


def _flat(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a (nested) sequence of normalizers or pre-tokenizers."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = part.get("pretokenizers") or part.get("normalizers") or ()
    return [step for item in inner for step in _flat(item)]


def _step(step: Mapping[str, Any]) -> tuple[str, Any]:
    kind = step["type"]
    if kind == "ByteLevel":
        return ("prefixed bytes", None) if step.get("add_prefix_space") else ("bytes", step.get("use_regex", True))
    if kind == "Digits":
        return "digits", step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return "split", next(iter(step["pattern"].values()))
    return kind, None


def _check_steps(normalizer: Mapping[str, Any] | None, known: tuple[str, ...]) -> None:
    odd = next((step["type"] for step in _flat(normalizer) if step["type"] not in known), None)
    if odd is not None:
        raise _refused(f"it rewrites text first ({odd}), llama.cpp doesn't")


def _tokens(parts: Mapping[str, Any], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(text of every id, its kind); ids without a token are named [PAD...] and unused."""
    model = parts["model"]
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    beyond = max([*model["vocab"].values(), *(added["id"] for added in parts["added_tokens"])])
    if beyond >= size:
        raise _refused(f"it has ids up to {beyond}, the model {size} embeddings")
    for token, index in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[index], kinds[index] = token, BYTE if is_byte else NORMAL
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    for added in parts["added_tokens"]:
        tokens[added["id"]] = added["content"]
        if kinds[added["id"]] not in (UNKNOWN, BYTE):
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tuple(tokens), tuple(kinds)


def _scores(model: Mapping[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """SentencePiece joins the pair whose result has the highest score: minus the place of the first merge into it."""
    places: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        places.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), place)
    return tuple(-float(places[token]) if token in places else -1000.0 for token in tokens)


def _spaces(tokens: tuple[str, ...], kinds: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Added tokens are searched for before spaces are replaced, so they hold real ones."""
    pairs = zip(tokens, kinds, strict=True)
    return tuple(t.replace(SPACE, " ") if kind == USER_DEFINED else t for t, kind in pairs), kinds


def _prefixed(parts: Mapping[str, Any]) -> bool:
    steps = [*_flat(parts.get("normalizer")), *_flat(parts.get("pre_tokenizer"))]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _refused(why: str) -> UsageError:
    what = f"this tokenizer can't be written as GGUF: {why}"
    return UsageError(what, where="--quant_method gguf", fix="--quant_method awq, gptq, bnb or fp8")


def first_ids(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first token before, and its last one after a text."""
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bool(ids) and bos is not None and ids[0] == bos, bool(ids) and eos is not None and ids[-1] == eos
