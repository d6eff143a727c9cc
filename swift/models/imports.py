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
QUESTIONS = {  # peft's, and the library that it imports when told yes
    "is_bnb_available": "bitsandbytes",
    "is_bnb_4bit_available": "bitsandbytes",
    "is_gptqmodel_available": "gptqmodel",
    "is_torchao_available": "torchao",
    "is_hqq_available": "hqq",
    "is_eetq_available": "eetq",
    "is_aqlm_available": "aqlm",
    "is_inc_available": "neural_compressor",
    "is_te_pytorch_available": "transformer_engine",
}


def unused(config: SftConfig | EngineConfig, files: ModelFiles) -> tuple[str, ...]:
    """What this command does without."""
    if any(name in files.config for name in (*TOWERS, "auto_map")):
        return ()  # processors and code of models' own may ask transformers for any of them
    quantized = config.value("quant_method") or config.value("quant_bits") or "quantization_config" in files.config
    optimizer = config.value("optim") if isinstance(config, SftConfig) else ""
    if quantized or any(word in optimizer for word in OPTIMIZERS):
        return UNUSED
    return (*UNUSED, "bitsandbytes", "torchao")


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
def libraries_only_where_used() -> Iterator[None]:
    """Around peft putting an adapter into a model. For any model it imports what quantizes layers, as far as that is
    installed: bitsandbytes brings torch's compiler, gptqmodel prints a banner and changes the environment. But no
    layer can be one of a library that nobody has imported, so peft is told that such aren't there.
    """
    absent = {name for name, library in QUESTIONS.items() if library not in sys.modules}
    asking = [module for name, module in list(sys.modules.items()) if name.startswith("peft.tuners.")]
    changed = [(module, name, vars(module)[name]) for module in asking for name in absent if name in vars(module)]
    try:
        for module, name, _ in changed:
            setattr(module, name, lambda: False)
        yield
    finally:
        for module, name, function in changed:
            setattr(module, name, function)
