"""Videos: decoded by PyAV where torchcodec isn't there, sampled by the processor's own rule, with a bound on frames.

Promises: the frames are those that the model's video processor chooses, or evenly spaced ones of them when they are
more than `max_frames`; only chosen frames are kept in memory.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from swift.errors import DataError, MissingPackage

Sampler = Callable[..., Any]  # sample(metadata=...) -> indices of frames


def temporary_file(content: bytes) -> Path:
    """Decoders want a file; the caller removes it."""
    with tempfile.NamedTemporaryFile(prefix="swift-video-", delete=False) as file:
        file.write(content)
    return Path(file.name)


@contextmanager
def own_decoding(processor: Any, max_frames: int | None, shrink: Callable[[Any], Any] | None) -> Iterator[None]:
    """Within, the video processor reads files through `read_video`; `shrink` makes a frame (a PIL image) smaller."""
    videos = processor.video_processor
    videos.fetch_videos = partial(_fetch, max_frames=max_frames, shrink=shrink)
    try:
        yield
    finally:
        del videos.fetch_videos


def _fetch(found: Any, sample_indices_fn: Sampler | None = None, **limits: Any) -> Any:
    """`fetch_videos` of transformers' video processors: (frames, metadata) of a file, or lists of both."""
    if isinstance(found, list):
        return list(zip(*[_fetch(one, sample_indices_fn, **limits) for one in found], strict=True))
    return read_video(str(found), sample_indices_fn, **limits)


def read_video(
    path: str, sample: Sampler | None, *, max_frames: int | None = None, shrink: Callable[[Any], Any] | None = None
) -> tuple[Any, Any]:
    """(uint8 [frames, height, width, 3], VideoMetadata). `sample` None takes every frame."""
    import numpy as np

    def chosen(metadata: Any, **kwargs: Any) -> Any:
        indices = range(metadata.total_num_frames) if sample is None else sample(metadata=metadata, **kwargs)
        indices = np.asarray(indices, dtype=np.int64)
        if max_frames is not None and len(indices) > max_frames:
            indices = indices[np.linspace(0, len(indices) - 1, max_frames).round().astype(np.int64)]
        return indices

    try:
        frames, metadata = _decoder()(path, chosen)
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"video {path!r} can't be read: {error}") from error
    if not len(frames):
        raise DataError(f"video {path!r} can't be read: it has no frames")
    return (frames if shrink is None else _shrunk(frames, shrink)), metadata


def _decoder() -> Callable[[str, Sampler], tuple[Any, Any]]:
    from transformers import video_utils
    from transformers.utils import is_av_available
    from transformers.utils.import_utils import is_torchcodec_usable

    if is_torchcodec_usable(decode="video"):
        return video_utils.read_video_torchcodec
    if not is_av_available():
        raise MissingPackage("reading video needs a decoder", fix="pip install av (or torchcodec)")
    return video_utils.read_video_pyav


def _shrunk(frames: Any, shrink: Callable[[Any], Any]) -> Any:
    import numpy as np
    from PIL import Image

    frames = np.asarray(frames)
    if frames.shape[-1] != 3:  # torchcodec gives channels first
        return frames
    return np.stack([np.asarray(shrink(Image.fromarray(frame))) for frame in frames])


def bytes_of(source: Any) -> bytes | None:
    """What a medium in memory holds; None for a path."""
    return source.getvalue() if isinstance(source, io.BytesIO) else None


def is_frames(item: Any) -> bool:
    """Whether a video is named by its frames, as a list of images."""
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray))
