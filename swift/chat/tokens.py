"""Text -> token ids as transformers gives them, and character spans -> token positions.

A whole text is tokenized once (`add_special_tokens=False`, as `apply_chat_template` does), never in pieces, so the ids
are the ones that the model is served. A token belongs to a span when it holds a character of the span; where the first
one also holds characters from before (a newline glued to the header's), where the text before the span has other
tokens when it stands alone (GPT-2 cuts white space by what follows it), or where the last one also holds words from
behind (an end-of-turn that is no token of its own), the span is *straddled* and says so.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

from swift.chat.render import Span

JOINED = 8  # texts
_LITERAL = -2  # no id: the divider, where a text holds it
_start, _end = itemgetter(0), itemgetter(1)


@dataclass(frozen=True)
class Tokenized:
    """ids, and the (start, end) characters of each token; ends is None for a tokenizer that can't say."""

    text: str
    ids: list[int]
    offsets: list[Span] | None


class Tokens:
    """A transformers tokenizer, asked for ids and offsets."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.fast = bool(tokenizer.is_fast)
        self.added = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        self._controls: dict[str, bool] = {}
        self._pattern = re.compile("|".join(map(re.escape, self.added)) or r"(?!)")
        self._separable = self.fast and _separable(tokenizer)
        self._tails: dict[str, list[int]] = {}

    def tokenize(self, texts: Sequence[str], raw: Sequence[bool]) -> list[Tokenized]:
        """Whole texts; a raw one gets the tokenizer's own special tokens (BOS) and no offsets."""
        found: list[Tokenized] = [None] * len(texts)
        for special in (False, True):
            chosen = [i for i, flag in enumerate(raw) if flag is special]
            out = self._call([texts[i] for i in chosen], special) if chosen else []
            for i, tokenized in zip(chosen, out, strict=True):
                found[i] = tokenized
        return found

    def _call(self, texts: list[str], special: bool) -> list[Tokenized]:
        with_offsets = self.fast and not special
        out = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_offsets_mapping=with_offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        offsets = out["offset_mapping"] if with_offsets else [None] * len(texts)
        return [Tokenized(*row) for row in zip(texts, out["input_ids"], offsets, strict=True)]

    def ids(self, text: str) -> list[int]:
        out = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(out["input_ids"])

    def controls(self, text: str) -> list[Span] | None:
        """Where the control tokens stand at which a text may be cut and tokenized piece by piece, with the same ids
        as in one piece; None for a tokenizer whose pieces depend on each other."""
        if not self._separable:
            return None
        return [found.span() for found in self._pattern.finditer(text) if self._cuts(found[0])]

    def separate(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of each text, nothing added, as fast as it goes; for a tokenizer that `controls` allows.

        A few at a time go as one text with a control token between them: a call costs as much as many tokens. ids int32
        [...], starts and stops int64 [texts]: text i has ids[starts[i]:stops[i]]; what stands between means nothing."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        divider, number = self._divider, self._divider_id
        size = JOINED if divider else 1
        groups = [texts[at : at + size] for at in range(0, len(texts), size)]
        joined = backend.encode_batch_fast([divider.join(group) for group in groups], add_special_tokens=False)
        ids: list[int] = []
        for group, found in zip(groups, joined, strict=True):
            part = found.ids
            if part.count(number) != len(group) - 1:
                part = self._apart(group)
            ids += part
            ids.append(number)
        flat = np.array(array("i", ids))
        stops = np.flatnonzero(flat == number)
        flat[flat == _LITERAL] = number
        return flat, np.concatenate([[0], stops[:-1] + 1])[: len(stops)], stops

    def _apart(self, texts: Sequence[str]) -> list[int]:
        """The ids of texts of which one holds the divider, which becomes `_LITERAL`, with dividers between them."""
        ids: list[int] = []
        for one in self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids += [_LITERAL if token == self._divider_id else token for token in one.ids]
            ids.append(self._divider_id)
        return ids[:-1]

    @cached_property
    def _looks_ahead(self) -> bool:
        """Whether the pattern that cuts texts into words may ask what follows white space."""
        cutter = self.tokenizer.backend_tokenizer.pre_tokenizer if self.fast else None
        state = b"" if cutter is None else cutter.__getstate__()
        return any(sign in state for sign in (b"(?!", b"(?=", b'"use_regex":true'))

    @cached_property
    def _divider(self) -> str:
        """A control token that stands alone beside any text; "" where there is none."""
        rare_first = [*self.tokenizer.all_special_tokens, *reversed(self.added)]
        return next((token for token in rare_first if self._cuts(token)), "")

    @cached_property
    def _divider_id(self) -> int:
        """Its id, or a number that is no id."""
        return self.tokenizer.convert_tokens_to_ids(self._divider) if self._divider else -1

    def _cuts(self, token: str) -> bool:
        """Whether a token is found whatever stands beside it: no other one reaches into it."""
        if token not in self._controls:
            added = {str(one): one for one in self.tokenizer.added_tokens_decoder.values()}
            own = added.get(token)
            plain = own is not None and token == token.strip() and not (own.lstrip or own.rstrip or own.single_word)
            others = [other for other in added if other != token]
            self._controls[token] = plain and not any(_reaches(other, token) for other in others)
            if self._controls[token] and own.normalized:
                # looked for after all the others, in the normalized text
                taken = any(not added[other].normalized and _reaches(token, other) for other in others)
                self._controls[token] = not (taken or _normalizes(self.tokenizer))
        return self._controls[token]

    def token_id(self, text: str) -> int | None:
        """The id of a text that is a single token, else None."""
        ids = self.ids(text)
        return ids[0] if len(ids) == 1 else None

    def positions(self, tokenized: Tokenized, span: Span) -> tuple[int, int, bool]:
        """Token range [first, last) of a character span, and whether its start is straddled by a token."""
        start, end = span
        if tokenized.offsets is None:
            return self._positions_by_prefix(tokenized, span)
        first = bisect_right(tokenized.offsets, start, key=_end)
        last = max(first, bisect_left(tokenized.offsets, end, key=_start))
        before = tokenized.offsets[first - 1][1] if first else 0
        # a mark put before a word may claim the characters of the token behind it: look at that one's start as well
        reaches = first < last and (before < start or tokenized.offsets[first][0] < start)
        straddled = (reaches or self._may_differ(tokenized, start, first)) and (
            self.ids(tokenized.text[:start]) != tokenized.ids[:first]
        )
        reached = tokenized.offsets[last - 1][1] if last > first else end
        return first, last, straddled or bool(tokenized.text[end:reached].strip())

    def _may_differ(self, tokenized: Tokenized, start: int, first: int) -> bool:
        """Whether the white space before `start` seems to have other tokens where nothing follows it."""
        space = start
        while space and tokenized.text[space - 1].isspace():
            space -= 1
        if space == start or not self._looks_ahead:
            return False
        at = first
        while at and tokenized.offsets[at - 1][0] >= space:
            at -= 1
        at = max(0, at - 1)  # the token before the white space, for a pattern that takes both together
        tail = tokenized.text[tokenized.offsets[at][0] : start]
        if tail not in self._tails:
            self._tails[tail] = self.ids(tail)
        return self._tails[tail] != tokenized.ids[at:first]

    def _positions_by_prefix(self, tokenized: Tokenized, span: Span) -> tuple[int, int, bool]:
        """Without offsets: the longest prefix of the ids that the text before each border has too."""
        first, clean = self._border(tokenized, span[0])
        last, end_clean = self._border(tokenized, span[1])
        return first, max(first, last if end_clean else last + 1), not clean

    def _border(self, tokenized: Tokenized, at: int) -> tuple[int, bool]:
        prefix = self.ids(tokenized.text[:at])
        same = 0
        while same < len(prefix) and same < len(tokenized.ids) and prefix[same] == tokenized.ids[same]:
            same += 1
        return same, same == len(prefix)


def _reaches(other: str, token: str) -> bool:
    """Whether `other`, found first, could take characters of `token`."""
    return token in other or any(other.endswith(token[:size]) for size in range(1, len(token)))


def _normalizes(tokenizer: Any) -> bool:
    """Whether texts are changed before they are cut into tokens."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and json.loads(normalizer.__getstate__()) != {"type": "Sequence", "normalizers": []}


def _separable(tokenizer: Any) -> bool:
    """Whether the stretches between special tokens are tokenized one by one: always so in the tokenizers library, but
    for a word-initial mark that only the first stretch gets, and tokenizers that do more than that library."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    if own.__call__ is not PreTrainedTokenizerFast.__call__:
        return False
    if own._encode_plus is not PreTrainedTokenizerFast._encode_plus or tokenizer.split_special_tokens:
        return False
    parts = (tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer)
    return not any(b'"first"' in part.__getstate__() for part in parts if part is not None)
