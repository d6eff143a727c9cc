"""The section that says how images, videos and audio are read, for training and for generation alike."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class MediaOptions:
    max_pixels: int | None = option(low=1)
    norm_bbox: str | None = option(choices=("none", "norm1000"))
    video_fps: float | None = option(low=0.001, aliases=("fps",))
    video_max_frames: int | None = option(low=1, aliases=("fps_max_frames", "max_frames"))
