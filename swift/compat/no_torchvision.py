"""Processors of Qwen-VL, InternVL and others hold a video part that needs torchvision, and transformers then refuses
the whole processor where torchvision isn't there, images too.

Concerns transformers up to 5.23. Within, the video part is a stand-in that says no to videos; what images become is not
touched (transformers' own PIL image processors). Not needed where torchvision can be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NoVideo(dict):
    """In the place of a video processor: false, and without settings."""

    model_input_names: tuple[str, ...] = ()
    _auto_class = None  # asked when a processor is saved


@contextmanager
def images_without_torchvision() -> Iterator[None]:
    """Within, processors load without their video part, if torchvision isn't there."""
    from transformers import ProcessorMixin
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        yield
        return
    load, check = AutoVideoProcessor.__dict__["from_pretrained"], ProcessorMixin.check_argument_for_proper_class

    def checked(self: Any, name: str, argument: Any) -> Any:
        return NoVideo if isinstance(argument, NoVideo) else check(self, name, argument)

    AutoVideoProcessor.from_pretrained = staticmethod(lambda *args, **kwargs: NoVideo())
    ProcessorMixin.check_argument_for_proper_class = checked
    try:
        yield
    finally:
        AutoVideoProcessor.from_pretrained = load
        ProcessorMixin.check_argument_for_proper_class = check
