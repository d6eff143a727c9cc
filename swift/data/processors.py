"""The processor of a model directory, as the options want media read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from swift.catalog import grounding
from swift.chat.grounding import Grounding
from swift.chat.medium import MediaSettings
from swift.chat.processing import Processing
from swift.config.media import MediaOptions
from swift.hub.files import read_json_object


def find_processing(directory: Path, options: MediaOptions, trust_remote_code: bool = False) -> Processing | None:
    """What makes tensors of the media in rows; None for a model of text. The processor itself is loaded when it is
    needed."""
    from swift.models.load import has_processor, load_processor

    if not has_processor(directory):
        return None
    model_type = read_json_object(directory / "config.json").get("model_type")
    forms = Grounding.of(grounding(), model_type, options.norm_bbox)
    settings = MediaSettings(options.max_pixels, options.video_fps, options.video_max_frames)
    return Processing(partial(load_processor, directory, trust_remote_code=trust_remote_code), settings, forms)
