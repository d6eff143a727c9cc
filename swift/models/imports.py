"""transformers and peft without the libraries that they take along where they are installed and that a command doesn't
use.

Promises: these libraries can be imported as ever afterwards; transformers itself doesn't know of them in this process.
Measured: they are a third of what a short run of LoRA costs (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from swift.config.commands import EngineConfig, SftConfig
from swift.hub import ModelFiles

# transformers: Trainer asks whether rows are a `datasets.Dataset`, losses of object detection solve with scipy,
# assisted generation draws its curve with sklearn
UNUSED = ("datasets", "scipy", "sklearn")
OPTIMIZERS = ("8bit", "bnb", "paged", "ademamix", "32bit")
TOWERS = ("vision_config", "audio_config", "text_config", "thinker_config")
QUESTIONS = ("is_bnb_available", "is_bnb_4bit_available")  # peft's


def unused(config: SftConfig | EngineConfig, files: ModelFiles) -> tuple[str, ...]:
    """What this command does without."""
    if any(name in files.config for name in (*TOWERS, "auto_map")):
        return ()  # processors and code of models' own may ask transformers for any of them
    quantized = config.value("quant_method") or config.value("quant_bits") or "quantization_config" in files.config
    optimizer = config.value("optim") if isinstance(config, SftConfig) else ""
    if quantized or any(word in optimizer for word in OPTIMIZERS):
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


@contextmanager
def bitsandbytes_only_where_used() -> Iterator[None]:
    """Around peft putting an adapter into a model. It imports bitsandbytes for any model, which imports torch's
    compiler; but no layer can be one of bitsandbytes' while nobody has imported that, so peft is told it isn't there.
    """
    changed = []
    if "bitsandbytes" not in sys.modules:
        tuners = [module for name, module in list(sys.modules.items()) if name.startswith("peft.tuners.")]
        asking = [(module, name) for module in tuners for name in QUESTIONS]
        changed = [(module, name, vars(module)[name]) for module, name in asking if name in vars(module)]
    try:
        for module, name, _ in changed:
            setattr(module, name, lambda: False)
        yield
    finally:
        for module, name, function in changed:
            setattr(module, name, function)
