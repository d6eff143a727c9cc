"""Images, videos and audio in a row: tags in the text become typed blocks, a processor expands their placeholders.

A row names its media in lists (`images`, `videos`, `audios`: paths, URLs, data URIs or loaded objects) and places them
with <image>, <video> and <audio> tags, or has typed blocks already. The processor replaces each placeholder of the
rendered text by as many tokens as the medium needs; the labels move along, and the text that is learned is compared
before and after. Media are never cut: a row that is too long is dropped whatever the strategy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.encoded import IGNORED, Encoded
from swift.errors import DataError, TemplateError

LISTS = {"image": "images", "video": "videos", "audio": "audios"}
_TAG = re.compile(r"<(image|video|audio)>")


def media_of(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The row's media by the processor's argument names; empty for a text row."""
    return {name: list(row[name]) for name in LISTS.values() if row.get(name)}


def with_blocks(messages: Sequence[Mapping[str, Any]], media: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Messages whose tags are typed blocks. DataError when the tags and the lists don't agree."""
    found = dict.fromkeys(LISTS.values(), 0)
    result = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and _TAG.search(content):
            content = _blocks(content)
        for part in content if isinstance(content, list) else ():
            name = LISTS.get(part.get("type"))
            if name:
                found[name] += 1
        result.append({**message, "content": content})
    for name, count in found.items():
        if count != len(media.get(name, ())):
            raise DataError(f"the row places {count} {name} and lists {len(media.get(name, ()))}")
    return result


def _blocks(content: str) -> list[dict[str, str]]:
    pieces = _TAG.split(content)
    blocks = [{"type": kind} if i % 2 else {"type": "text", "text": kind} for i, kind in enumerate(pieces)]
    return [block for block in blocks if block.get("text") != ""]


def expand(encoded: Encoded, text: str, media: Mapping[str, list[Any]], processor: Any) -> Encoded:
    """The row as the processor makes it: ids with expanded placeholders, labels moved, what else it returns in `media`.

    Raises TemplateError when the ids can't be matched with the text's own.
    """
    out = dict(processor(text=[text], **_loaded(media, processor), add_special_tokens=False, return_tensors="pt"))
    ids = out.pop("input_ids")[0].tolist()
    out.pop("attention_mask", None)
    source = _alignment(encoded.input_ids, ids)
    labels = [IGNORED if i is None else encoded.labels[i] for i in source]
    scale = encoded.loss_scale and [0.0 if i is None else encoded.loss_scale[i] for i in source]
    moved = [token for token in labels if token != IGNORED]
    if moved != [token for token in encoded.labels if token != IGNORED] or any(
        label not in (IGNORED, token) for label, token in zip(labels, ids, strict=True)
    ):
        raise TemplateError("the processor changes the text beyond its media placeholders", where="processor")
    return replace(encoded, input_ids=ids, labels=labels, loss_scale=scale, media=out)


def _alignment(short: Sequence[int], long: Sequence[int]) -> list[int | None]:
    """For each token of `long` its position in `short`; None inside an expanded placeholder.

    Equal ends first, then the stretches between the tokens whose number the processor has changed.
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
            raise TemplateError("the processor's tokens don't match the rendered text", where="processor")
        source[found : found + len(run)] = range(start, stop)
        at, start = found + len(run), stop + 1
    return source


def _find(long: Sequence[int], run: list[int], at: int) -> int | None:
    return next((i for i in range(at, len(long) - len(run) + 1) if long[i : i + len(run)] == run), None)


def _loaded(media: Mapping[str, list[Any]], processor: Any) -> dict[str, list[Any]]:
    """The processor's arguments, with images and sound read into memory; it reads videos itself."""
    loaded: dict[str, list[Any]] = {}
    for name, items in media.items():
        if name == "images":
            from transformers.image_utils import load_image

            loaded[name] = [load_image(item) for item in items]
        elif name == "audios":
            from transformers.audio_utils import load_audio

            rate = processor.feature_extractor.sampling_rate
            loaded["audio"] = [load_audio(item, sampling_rate=rate) for item in items]
        else:
            loaded[name] = items
    return loaded
