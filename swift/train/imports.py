"""transformers and peft without the libraries that they take along where they are installed and that a run doesn't use.

Promises: these libraries can be imported as ever afterwards; transformers itself doesn't know of them in this process.
Measured: they are a quarter to a third of what importing transformers' Trainer and peft costs (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from swift.config.commands import SftConfig
from swift.hub import ModelFiles

# transformers: Trainer asks whether rows are a `datasets.Dataset`, losses of object detection solve with scipy,
# assisted generation draws its curve with sklearn
UNUSED = ("datasets", "scipy", "sklearn")
OPTIMIZERS = ("8bit", "bnb", "paged", "ademamix", "32bit")
TOWERS = ("vision_config", "audio_config", "text_config", "thinker_config")


def unused(config: SftConfig, files: ModelFiles) -> tuple[str, ...]:
    """What this run does without."""
    if any(name in files.config for name in (*TOWERS, "auto_map")):
        return ()  # processors and code of models' own may ask transformers for any of them
    quantized = config.value("quant_method") or config.value("quant_bits") or "quantization_config" in files.config
    if quantized or any(word in config.value("optim") for word in OPTIMIZERS):
        return UNUSED
    return (*UNUSED, "bitsandbytes")


@contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """Around the first import of transformers and peft; nothing happens where that was before."""
    hidden = [] if "transformers" in sys.modules else [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
