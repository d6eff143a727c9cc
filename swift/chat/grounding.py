"""Places in images: <ref-object> and <bbox> in a row's texts become what the model's family writes there.

A row's `objects` are {"ref": names, "bbox": places, "bbox_type": "real" | "norm1", "image_id": [image of each place]};
a place is [x1, y1, x2, y2] or [x, y], in pixels of the image file ("real") or as shares of its size ("norm1"). The
forms stand in catalog/grounding.toml. DataError where tags and lists don't agree, or a place isn't in its image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swift.errors import DataError

_TAG = re.compile(r"<(ref-object|bbox)>")
SCALES = {"none": "pixels", "norm1000": "thousandths"}  # names of --norm_bbox

# image number -> ((width, height) of the file, (width, height) as the model sees it)
Sizes = Callable[[int], tuple[tuple[int, int], tuple[int, int]]]


@dataclass(frozen=True)
class Grounding:
    """`object`, `box`, `point`: templates; `scale`: "thousandths" or "pixels" of the image that the model sees."""

    object: str = "{name}"
    box: str = "[({x1},{y1}),({x2},{y2})]"
    point: str = "({x},{y})"
    scale: str = "thousandths"

    @classmethod
    def of(cls, table: Mapping[str, Mapping[str, Any]], model_type: str | None, norm: str | None = None) -> Grounding:
        """Of a family, by the table's own names and their `also`; `norm`: a name of SCALES that overrules it."""
        named = {name: entry for name, entry in table.items()}
        named |= {other: entry for entry in table.values() for other in entry.get("also", ())}
        entry = named.get(model_type or "", table["default"])
        found = cls(**{key: entry[key] for key in ("object", "box", "point", "scale")})
        return found if norm is None else replace(found, scale=SCALES[norm])


def with_objects(
    messages: Sequence[Mapping[str, Any]], objects: Mapping[str, Any], grounding: Grounding, sizes: Sizes
) -> list[dict[str, Any]]:
    """The messages with every tag replaced, in order."""
    names = [str(name) for name in _listed(objects, "ref")]
    places = _listed(objects, "bbox")
    images = objects.get("image_id") or [0] * len(places)
    if len(images) != len(places):
        raise DataError(f"objects name {len(places)} places and {len(images)} images for them")
    kind = objects.get("bbox_type") or "real"
    if kind not in ("real", "norm1"):
        raise DataError(f"objects have bbox_type {kind!r}", fix='"real" (pixels) or "norm1" (shares of the size)')
    written = {"ref-object": iter(_written_names(names, grounding)), "bbox": iter(())}
    written["bbox"] = (_place(p, int(i), kind, grounding, sizes) for p, i in zip(places, images, strict=True))
    found = {"ref-object": 0, "bbox": 0}
    result = [_replaced(message, written, found) for message in messages]
    for tag, count in (("ref-object", len(names)), ("bbox", len(places))):
        if found[tag] != count:
            raise DataError(f"the row places {found[tag]} <{tag}> and lists {count}")
    return result


def grounded(row: Mapping[str, Any], processing: Any) -> dict[str, Any]:
    """The row with the places of its `objects` written into its messages; processing: the model's `Processing`."""
    sizes = processing.sizes(row.get("images") or ())
    messages = with_objects(row["messages"], row["objects"], processing.grounding, sizes)
    return {**{key: value for key, value in row.items() if key != "objects"}, "messages": messages}


def _listed(objects: Any, key: str) -> list[Any]:
    value = objects.get(key) if isinstance(objects, Mapping) else None
    return list(value) if isinstance(value, (list, tuple)) else []


def _written_names(names: Sequence[str], grounding: Grounding) -> Iterator[str]:
    return (grounding.object.format(name=name) for name in names)


def _replaced(
    message: Mapping[str, Any], written: Mapping[str, Iterator[str]], found: dict[str, int]
) -> dict[str, Any]:
    def put(match: re.Match[str]) -> str:
        found[match[1]] += 1
        return next(written[match[1]], match[0])

    content = message.get("content")
    if isinstance(content, str):
        content = _TAG.sub(put, content)
    elif isinstance(content, list):
        content = [{**part, "text": _TAG.sub(put, part["text"])} if "text" in part else part for part in content]
    return {**message, "content": content}


def _place(place: Any, image: int, kind: str, grounding: Grounding, sizes: Sizes) -> str:
    numbers = place if isinstance(place, (list, tuple)) else ()
    if len(numbers) not in (2, 4) or not all(isinstance(n, (int, float)) for n in numbers):
        raise DataError(f"a place is no [x1, y1, x2, y2] or [x, y]: {place!r}")
    filed, seen = sizes(image)
    shares = [n / (1 if kind == "norm1" else filed[i % 2]) for i, n in enumerate(numbers)]
    if not all(-0.001 <= share <= 1.001 for share in shares):
        raise DataError(f"the place {list(numbers)} is outside its image of {filed[0]} x {filed[1]} pixels")
    whole = (1000, 1000) if grounding.scale == "thousandths" else seen
    x1, y1, *rest = (min(whole[i % 2], max(0, round(share * whole[i % 2]))) for i, share in enumerate(shares))
    if not rest:
        return grounding.point.format(x=x1, y=y1)
    return grounding.box.format(x1=x1, y1=y1, x2=rest[0], y2=rest[1])
