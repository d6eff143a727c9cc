"""One image, video or audio: from a path, URL, data URI, bytes or a loaded object to what a processor takes.

Promises: what can't be read is a DataError that names it, never skipped; images are upright and RGB. Reads one medium
at a time and keeps none.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import mimetypes
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swift.chat.video import bytes_of, is_frames, own_decoding, temporary_file
from swift.errors import DataError, MissingPackage

TIMEOUT = 30  # seconds for a URL to answer
MOST_BYTES = 1 << 30  # of one file from a URL
_DATA = re.compile(r"data:[^,]*,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


@dataclass(frozen=True)
class MediaSettings:
    """max_pixels: a larger image (height x width) is made smaller, in proportion, before the processor sees it.
    fps, max_frames: how many frames of a video are taken, by second and at most; None: the processor's own way. Its
    frames are made smaller like images.
    """

    max_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None


def load_image(items: Sequence[Any], processor: Any, settings: MediaSettings, scope: ExitStack) -> dict[str, Any]:
    return {"images": [[smaller(read_image(item), settings.max_pixels) for item in items]]}


def read_image(item: Any) -> Any:
    """A PIL image, upright and RGB."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingPackage("reading images needs Pillow", fix="pip install pillow") from error
    try:
        image = item if isinstance(item, Image.Image) else Image.open(_source(item))
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {shown(item)!r} can't be read: {_reason(error)}") from error


def smaller(image: Any, max_pixels: int | None) -> Any:
    if not max_pixels or image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def load_audio(items: Sequence[Any], processor: Any, settings: MediaSettings, scope: ExitStack) -> dict[str, Any]:
    extractor = getattr(processor, "feature_extractor", None) or processor.audio_processor
    rate = extractor.sampling_rate
    return {"audio": [read_audio(item, rate) for item in items], "sampling_rate": rate}


def read_audio(item: Any, rate: int) -> Any:
    """float32 [samples] at `rate` Hz, one channel."""
    import numpy as np
    from transformers.audio_utils import load_audio as decode

    if isinstance(item, np.ndarray):
        return item
    try:
        source = _source(item)
        if isinstance(source, io.BytesIO):
            source = "data:audio/wav;base64," + base64.b64encode(source.getvalue()).decode("ascii")
        return decode(source, sampling_rate=rate)
    except ImportError as error:
        raise MissingPackage("reading audio needs a decoder", fix="pip install soundfile soxr") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"audio {shown(item)!r} can't be read: {_reason(error)}") from error


def load_video(items: Sequence[Any], processor: Any, settings: MediaSettings, scope: ExitStack) -> dict[str, Any]:
    """Files are decoded and sampled as the processor wants it; a video named by its frames is taken as it is."""
    shrink = partial(smaller, max_pixels=settings.max_pixels) if settings.max_pixels else None
    scope.enter_context(own_decoding(processor, settings.max_frames, shrink))
    if all(is_frames(item) for item in items):
        frames = [[smaller(read_image(frame), settings.max_pixels) for frame in item] for item in items]
        return {"videos": [frames], "do_sample_frames": False}
    if any(is_frames(item) for item in items):
        raise DataError("a row has videos as files and videos as lists of frames", fix="give all in one form")
    arguments: dict[str, Any] = {"videos": [[_video_file(item, scope) for item in items]]}
    if settings.fps is not None:
        arguments |= {"fps": settings.fps, "do_sample_frames": True}
    return arguments


def _video_file(item: Any, scope: ExitStack) -> str:
    """A path; what is in memory or at a URL is written to a file for as long as the row is made."""
    try:
        source = _source(item)
    except (OSError, ValueError) as error:
        raise DataError(f"video {shown(item)!r} can't be read: {_reason(error)}") from error
    content = bytes_of(source)
    if content is None:
        if not Path(source).is_file():
            raise DataError(f"video {shown(item)!r} can't be read: no such file")
        return str(source)
    path = temporary_file(content)
    scope.callback(path.unlink, missing_ok=True)
    return str(path)


def _source(item: Any) -> Any:
    """A local path, or the bytes in memory."""
    if isinstance(item, Mapping):
        item = next((item[key] for key in ("bytes", "path", "url") if item.get(key) is not None), item)
    if isinstance(item, (bytes, bytearray)):
        return io.BytesIO(item)
    if isinstance(item, Path):
        return str(item)
    if not isinstance(item, str):
        raise ValueError(f"it is of type {type(item).__name__}")
    if item.startswith(("http://", "https://")):
        return io.BytesIO(_fetch(item))
    if item.startswith("file://"):
        return item.removeprefix("file://")
    head = _DATA.match(item)
    if head is not None:
        try:
            return io.BytesIO(base64.b64decode(item[head.end() :]))
        except binascii.Error as error:
            raise ValueError(f"broken base64: {error}") from error
    if _BASE64.fullmatch(item) and not Path(item[:255]).exists():
        return io.BytesIO(base64.b64decode(item))
    return item


def fetched(item: Any) -> Any:
    """What stands at an http(s) address, as bytes; anything else as it is. DataError when it can't be had."""
    if not isinstance(item, str) or not item.startswith(("http://", "https://")):
        return item
    try:
        return _fetch(item)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(item)!r} can't be read: {_reason(error)}") from error


def _fetch(url: str) -> bytes:
    from urllib.request import Request, urlopen

    with urlopen(Request(url, headers={"User-Agent": "swift"}), timeout=TIMEOUT) as answer:
        found = answer.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    return found


def data_url(reference: str) -> str:
    """A local file as a data: URL; a URL as it is. DataError when the file can't be read."""
    if reference.startswith(("http://", "https://", "data:")):
        return reference
    kind = mimetypes.guess_type(reference)[0] or "application/octet-stream"
    try:
        content = Path(reference).read_bytes()
    except OSError as error:
        raise DataError(f"{reference!r} can't be read: {_reason(error)}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shown(item: Any) -> str:
    """A name for messages: a path or URL, the beginning of a data URI."""
    if isinstance(item, str):
        return item if len(item) <= 120 else f"{item[:40]}..."
    if isinstance(item, Mapping):
        return shown(next((item[key] for key in ("path", "url") if isinstance(item.get(key), str)), "bytes"))
    return f"<{type(item).__name__}>"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).replace("\n", " ")[:200] or type(error).__name__
