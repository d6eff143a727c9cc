"""Images, videos and audio in a row: tags in the text become typed blocks, a processor expands their placeholders.

A row names its media in lists (`images`, `videos`, `audios`: paths, URLs, data URIs or loaded objects) and places them
with <image>, <video> and <audio> tags, or has typed blocks already. The checkpoint's processor replaces each
placeholder of the rendered text by as many tokens as the medium needs; the learned characters move along, and the ids
are checked against the processor's. A placeholder is never learned and never cut in two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from swift.chat.encoded import Encoded
from swift.chat.label import Planned, label
from swift.chat.processing import Processed, Processing
from swift.chat.tokens import Tokenized, Tokens
from swift.errors import DataError, TemplateError

LISTS = {"image": "images", "video": "videos", "audio": "audios"}
_TAG = re.compile(r"<(image|video|audio)>")


def media_of(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The row's media by list; empty for a text row."""
    return {name: list(row[name]) for name in LISTS.values() if row.get(name)}


def placed_media(messages: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The media that the messages' own blocks hold, by list and in order; empty for a conversation of texts."""
    found: dict[str, list[Any]] = {}
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type")
            if kind in LISTS and part.get(kind) is not None:
                found.setdefault(LISTS[kind], []).append(part[kind])
    return found


def share(media: Mapping[str, Sequence[Any]], messages: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Of the media of a conversation those that these messages, its first ones, place."""
    kinds = [part.get("type") for m in messages if isinstance(m.get("content"), list) for part in m["content"]]
    return {LISTS[kind]: list(media[LISTS[kind]][: kinds.count(kind)]) for kind in LISTS if media.get(LISTS[kind])}


def with_blocks(messages: Sequence[Mapping[str, Any]], media: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Messages whose tags are typed blocks that hold their medium: {"type": "image", "image": ...}.

    DataError when the tags and the lists don't agree. A tag of a kind that the row lists nothing of is text.
    """
    found = dict.fromkeys(LISTS.values(), 0)
    result = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and _TAG.search(content):
            content = _blocks(content, media)
        if isinstance(content, list):
            content = [_filled(part, media, found) for part in content]
        result.append({**message, "content": content})
    for name, count in found.items():
        if count != len(media.get(name, ())):
            raise DataError(f"the row places {count} {name} and lists {len(media.get(name, ()))}")
    return result


def _filled(part: Mapping[str, Any], media: Mapping[str, Sequence[Any]], found: dict[str, int]) -> dict[str, Any]:
    kind = part.get("type")
    if kind not in LISTS:
        return dict(part)
    listed = media.get(LISTS[kind], ())
    number, found[LISTS[kind]] = found[LISTS[kind]], found[LISTS[kind]] + 1
    return {"type": kind, kind: listed[number]} if number < len(listed) else dict(part)


def _blocks(content: str, media: Mapping[str, Sequence[Any]]) -> list[dict[str, str]]:
    blocks: list[dict[str, str]] = []
    text, last = "", 0
    for match in _TAG.finditer(content):
        if not media.get(LISTS[match[1]]):
            continue
        text = content[last : match.start()]
        blocks += [{"type": "text", "text": text}] if text else []
        blocks.append({"type": match[1]})
        last = match.end()
    rest = content[last:]
    return blocks + ([{"type": "text", "text": rest}] if rest else [])


def expand(plan: Planned, tokenized: Tokenized, tokens: Tokens, processing: Processing) -> tuple[Encoded, list[int]]:
    """The row as the processor makes it, with the labels of the same conversation as text, and where turns end.

    `Encoded.media` says how to make its tensors again: they are not kept. TemplateError when the processor's ids
    can't be matched with the text.
    """
    made = processing.run(plan.text, plan.media or {})
    found = None if made.replacements is None else _by_text(plan, made, tokens)
    whole, ends = found or _by_tokens(plan, made, tokenized, tokens)
    learned = whole.learned.copy()
    learned[made.placeholder_positions()] = False
    return replace(whole, learned=learned, media={"text": plan.text, **(plan.media or {})}), ends


def _by_text(plan: Planned, made: Processed, tokens: Tokens) -> tuple[Encoded, list[int]] | None:
    """Label the expanded text itself; None when its ids aren't the processor's."""
    text, at = made.expanded(plan.text), made.mover()
    moved = tuple(((at(a), at(b)), weight) for (a, b), weight in plan.spans)
    tokenized = tokens.tokenize([text], [False])[0]
    whole, ends = label(replace(plan, text=text, spans=moved), tokenized, tokens)
    lead = _lead(tokenized.ids, made.ids)
    if lead is None:
        return None
    tail = len(made.ids) - lead - len(tokenized.ids)
    if tail and plan.add_end:
        return None
    added = whole.ids[len(tokenized.ids) :]
    return replace(
        whole,
        ids=np.concatenate([np.array(made.ids, np.int32), added]),
        learned=np.pad(whole.learned, (lead, tail)),
        scales=None if whole.scales is None else np.pad(whole.scales, (lead, tail)),
    ), [end + lead for end in ends]


def _lead(inner: Sequence[int], whole: Sequence[int]) -> int | None:
    """How many ids the processor put before the text's own (BOS); None when those aren't inside."""
    spare = len(whole) - len(inner)
    return next((lead for lead in range(spare + 1) if whole[lead : lead + len(inner)] == inner), None)


def _by_tokens(plan: Planned, made: Processed, tokenized: Tokenized, tokens: Tokens) -> tuple[Encoded, list[int]]:
    """For a processor that doesn't say what it replaced: match the tokens of the text with its own."""
    encoded, ends = label(replace(plan, add_end=False), tokenized, tokens)
    ids = np.array(made.ids, np.int32)
    what = "the processor's tokens don't match the rendered text"
    for find in (_between_changed, _around_one_stretch):
        source = find(encoded.input_ids, made.ids)
        if source is None:
            continue
        whence = np.array([-1 if i is None else i for i in source], np.int64)
        learned = (whence >= 0) & encoded.learned[whence]
        moved = ids[learned]
        if np.array_equal(moved, encoded.ids[encoded.learned]) and (moved == encoded.ids[whence[learned]]).all():
            break
        what = "the processor changes the text beyond its media placeholders"
    else:
        raise TemplateError(what, where="processor")
    scales = encoded.scales if encoded.scales is None else np.where(whence >= 0, encoded.scales[whence], 0.0)
    place = {i: k for k, i in enumerate(source) if i is not None}
    ends = [place[end - 1] + 1 for end in ends if end - 1 in place]
    return replace(encoded, ids=ids, learned=learned, scales=scales), ends


def _around_one_stretch(short: Sequence[int], long: Sequence[int]) -> list[int | None] | None:
    """The equal ends around one stretch that was put in, where what stands for a picture are ids of words as well
    (Kosmos-2); up to two last tokens may be gone (white space at the end)."""
    for gone in range(3):
        kept = short[: len(short) - gone]
        head, tail = _equal(kept, long), _equal(kept[::-1], long[::-1])
        if len(kept) <= len(long) and head + tail >= len(kept):
            return [*range(head), *[None] * (len(long) - len(kept)), *range(head, len(kept))]
    return None


def _equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _between_changed(short: Sequence[int], long: Sequence[int]) -> list[int | None] | None:
    """For each token of `long` its position in `short`; None inside an expanded placeholder.

    Equal ends first, then the stretches between the tokens whose number the processor has changed; None in all when
    they aren't found.
    """
    changed = {token for token in {*short, *long} if short.count(token) != long.count(token)}
    source: list[int | None] = [None] * len(long)
    at, start = 0, 0
    while start < len(short):
        stop = start
        while stop < len(short) and short[stop] not in changed:
            stop += 1
        run = list(short[start:stop])
        last = stop == len(short)
        found = len(long) - len(run) if last else _find(long, run, at)
        if found is None or found < at or long[found : found + len(run)] != run:
            return None
        source[found : found + len(run)] = range(start, stop)
        at, start = found + len(run), stop + 1
    return source


def _find(long: Sequence[int], run: list[int], at: int) -> int | None:
    return next((i for i in range(at, len(long) - len(run) + 1) if long[i : i + len(run)] == run), None)
