"""Silence around transformers' loaders: no progress bars, no notices. What matters is said by whoever calls them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers and peft print errors only; the settings before are restored."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    accelerate = logging.getLogger("accelerate")
    level = accelerate.level
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()
