"""transformers reads a GGUF file's metadata three times, through numpy's memmap (slow to slice), and builds the
table of tensor names once per module of the model. For a 135M model that is 20 of 25 seconds.

Concerns transformers up to 5.23 and gguf up to 0.19. Results are the same; only the time differs. Not needed any
more when `transformers.integrations.gguf` covers all architectures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np


@contextmanager
def fast_gguf_reading() -> Iterator[None]:
    """Within, a file is parsed once, and through a plain array over the same mapped memory."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as legacy

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    bar = legacy.tqdm

    class PlainReader(reader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = mapped.view(np.ndarray)

    gguf.GGUFReader = cache(PlainReader)
    gguf.get_tensor_name_map = cache(name_map)
    legacy.tqdm = lambda items, **_: items  # a bar that no setting of transformers hides
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map
        legacy.tqdm = bar
