"""How many tokens an image, a video or a sound takes in a row, from the checkpoint's JSON files alone.

Promises: for processors that cut an image into a fixed grid, into patches of its own size (Qwen-VL, Pixtral) or into
tiles (Idefics 3, InternVL, LLaVA-NeXT) the count is the processor's own, to a few tokens (tests). Videos and sounds
are counted roughly. Loads no processor and decodes no medium: sizes come from the files' headers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Size = tuple[int, int]  # width, height
USUAL: Size = (1024, 768)  # of an image that isn't at hand
UNKNOWN_GRID = 576
FRAMES = 16  # frames of a video that models usually take
SOUND = 750  # tokens of half a minute at 25 a second
PER_TILE, MARKS = 2, 3  # tokens that mark a tile, and an image
FIXED = ("mm_tokens_per_image", "image_seq_length", "image_seq_len", "num_image_tokens", "image_token_len")
FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Sight:
    """The settings of a model's image processor, as its files have them. `max_pixels`: larger images are made smaller
    first (--max_pixels)."""

    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    max_pixels: int | None = None

    @property
    def vision(self) -> Mapping[str, Any]:
        thinker = self.config.get("thinker_config")
        found = (thinker or self.config).get("vision_config")
        return found if isinstance(found, Mapping) else {}

    def row(self, media: Mapping[str, Sequence[Any]], folder: Path) -> int:
        """Tokens of all media of a row; `media` as in a canonical row, paths relative to `folder`."""
        images = sum(self.image(size_of(item, folder)) for item in media.get("images") or ())
        videos = len(media.get("videos") or ()) * FRAMES * self.image(None) // 2
        return images + videos + len(media.get("audios") or ()) * SOUND

    def image(self, size: Size | None) -> int:
        """Tokens of one image of this size, with the marks around it."""
        width, height = self._shrunk(size or USUAL)
        if "cross_attention_layers" in (self.config.get("text_config") or {}):
            return 1  # mllama: nothing stands in the row
        for way in (_own_patches, _rows_of_patches, _grid_points, _split, _dynamic_tiles):
            found = way(self, width, height)
            if found is not None:
                return found + MARKS
        return self.grid + MARKS

    def _shrunk(self, size: Size) -> Size:
        pixels = size[0] * size[1]
        if not self.max_pixels or pixels <= self.max_pixels:
            return size
        scale = math.sqrt(self.max_pixels / pixels)
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))

    @property
    def patch(self) -> int:
        return _first(self.settings, ("patch_size",)) or _first(self.vision, ("patch_size",)) or 14

    @property
    def merged(self) -> int:
        """Patches along each edge of what becomes one token."""
        found = _first(self.settings, ("merge_size", "spatial_merge_size"))
        found = found or _first(self.vision, ("spatial_merge_size",)) or _first(self.config, ("spatial_merge_size",))
        if found is None and isinstance(self.config.get("downsample_ratio"), float):
            found = round(1 / self.config["downsample_ratio"])
        return found or _first(self.config, ("scale_factor",)) or 1

    @property
    def grid(self) -> int:
        """Tokens of one image, or of one tile, in a model whose images all have one size."""
        for holder in (self.config, self.settings, self.vision, self.config.get("text_config") or {}):
            found = _first(holder, FIXED)
            if found:
                return found
        edge = _edge(self.vision.get("image_size"))
        return (edge // self.patch // self.merged) ** 2 if edge else UNKNOWN_GRID


def sight_of(config: Mapping[str, Any], directory: Path, max_pixels: int | None = None) -> Sight | None:
    """What is known of how a model sees and hears; None for a model of text."""
    settings: dict[str, Any] = {}
    for name in FILES:
        if (directory / name).is_file():
            found = json.loads((directory / name).read_text(encoding="utf-8"))
            inner = found.get("image_processor")
            settings |= found | (inner if isinstance(inner, dict) else {})
    parts = ("vision_config", "audio_config", "thinker_config")
    if not settings and not any(isinstance(config.get(part), Mapping) for part in parts):
        return None
    return Sight(config, settings, max_pixels)


def size_of(item: Any, folder: Path) -> Size | None:
    """Width and height of an image file, from its header; None for what isn't on this machine."""
    path = item.get("path") if isinstance(item, Mapping) else item
    if not isinstance(path, str) or path.startswith(("http://", "https://", "data:")):
        return None
    place = folder / Path(path).expanduser()
    if not place.is_file():
        return None
    try:
        from PIL import Image

        with Image.open(place) as image:
            return image.size
    except (ImportError, OSError, ValueError):
        return None


# ---- the ways to cut an image up ----


def _own_patches(sight: Sight, width: int, height: int) -> int | None:
    """Qwen-VL and its like: the image keeps its shape, within bounds of pixels."""
    if _first(sight.settings, ("merge_size",)) is None:
        return None
    size = sight.settings.get("size") or {}
    least = sight.settings.get("min_pixels") or size.get("shortest_edge") or 56 * 56
    most = sight.settings.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
    factor = sight.patch * sight.merged
    wide, high = (max(factor, round(edge / factor) * factor) for edge in (width, height))
    if wide * high > most:
        beta = math.sqrt(width * height / most)
        wide, high = (max(factor, math.floor(edge / beta / factor) * factor) for edge in (width, height))
    elif wide * high < least:
        beta = math.sqrt(least / (width * height))
        wide, high = (math.ceil(edge * beta / factor) * factor for edge in (width, height))
    return wide * high // factor**2


def _rows_of_patches(sight: Sight, width: int, height: int) -> int | None:
    """Pixtral: the image keeps its shape, and each row of patches ends in a token of its own."""
    if sight.vision.get("model_type") != "pixtral":
        return None
    most = _edge(sight.settings.get("size")) or _edge(sight.vision.get("image_size")) or 1024
    ratio = max(width / most, height / most, 1.0)
    step = sight.patch * sight.merged
    columns, rows = (math.ceil(math.floor(edge / ratio) / step) for edge in (width, height))
    return rows * (columns + 1)


def _grid_points(sight: Sight, width: int, height: int) -> int | None:
    """LLaVA-NeXT: one of some resolutions, its padding cut off, a token behind each row; and the whole in small."""
    points = sight.config.get("image_grid_pinpoints") or sight.settings.get("image_grid_pinpoints")
    edge = _edge(sight.vision.get("image_size"))
    if not points or not edge:
        return None

    def useful(point: Sequence[int]) -> tuple[int, int]:
        scale = min(point[1] / width, point[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - point[0] * point[1]

    high, wide = max(points, key=useful)
    side = edge // sight.patch
    rows, columns = high // edge * side, wide // edge * side
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows * columns + rows + side**2


def _split(sight: Sight, width: int, height: int) -> int | None:
    """Idefics 3, SmolVLM: tiles of one size, and the whole in small where there is more than one."""
    tile = _edge(sight.settings.get("max_image_size"))
    if not tile or not sight.settings.get("do_image_splitting"):
        return None
    longest = _edge(sight.settings.get("size")) or tile
    scale = longest / max(width, height)
    columns, rows = (math.ceil(max(1, int(edge * scale)) / tile) for edge in (width, height))
    tiles = rows * columns if rows * columns > 1 else 0
    return sight.grid + tiles * (sight.grid + PER_TILE) + rows * (tiles > 0)


def _dynamic_tiles(sight: Sight, width: int, height: int) -> int | None:
    """InternVL: as many tiles as come nearest to the image's shape, and the whole in small."""
    most = _first(sight.settings, ("max_patches",)) or _first(sight.config, ("max_dynamic_patch",))
    crops = sight.settings.get("crop_to_patches", sight.config.get("dynamic_image_size"))
    edge = _edge(sight.settings.get("size")) or _edge(sight.vision.get("image_size"))
    if not most or not crops or not edge:
        return None
    shapes = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    shapes.sort(key=lambda shape: (shape[0] * shape[1], shape))
    best, gap = (1, 1), math.inf
    for columns, rows in shapes:
        apart = abs(width / height - columns / rows)
        if apart < gap or (apart == gap and width * height > 0.5 * edge * edge * columns * rows):
            best, gap = (columns, rows), apart
    tiles = best[0] * best[1]
    return sight.grid * (tiles + (tiles > 1))


def _first(holder: Mapping[str, Any], names: Sequence[str]) -> int | None:
    found = (holder.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def _edge(size: Any) -> int | None:
    """The longest edge that a size names, in whichever form it is written."""
    if isinstance(size, Mapping):
        named = (size.get(name) for name in ("longest_edge", "height", "shortest_edge"))
        return next((n for n in named if isinstance(n, int)), None)
    if isinstance(size, (list, tuple)):
        return max((n for n in size if isinstance(n, int)), default=None)
    return size if isinstance(size, int) else None
