"""Which GGUF type is meant by --quant_bits and --gguf_type, and what to take instead of one that isn't written here."""

from __future__ import annotations

from swift.config.commands import ExportConfig
from swift.errors import UsageError

# type -> bits; the first of a width is its default
TYPES = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8, "Q5_1": 5, "Q5_0": 5, "Q4_0": 4, "Q4_1": 4}
KQUANTS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")
_INSTEAD = {"Q2": "Q4_0", "Q3": "Q4_0", "Q4": "Q4_1", "Q5": "Q5_1", "Q6": "Q8_0"}


def decide_type(config: ExportConfig) -> ExportConfig:
    """--gguf_type and --quant_bits, each from the other; UsageError for what isn't written here."""
    kind, bits = config.export.gguf_type, config.quantization.quant_bits
    if kind in KQUANTS:
        near = _INSTEAD[kind[:2]]
        fix = f"--gguf_type {near}; or --gguf_type F16, then llama.cpp's own: llama-quantize F16.gguf OUT.gguf {kind}"
        raise UsageError(f"{kind} is written by llama.cpp only", where="--gguf_type", fix=fix)
    if kind is not None:
        if bits is not None and bits != TYPES[kind]:
            raise UsageError(
                f"{kind} has {TYPES[kind]} bits, not {bits}", where="--quant_bits", fix="leave out one of the two"
            )
        return config.decide(f"{kind} has", quant_bits=TYPES[kind])
    bits = bits or 8
    fitting = [name for name, width in TYPES.items() if width == bits]
    if not fitting:
        have = ", ".join(str(width) for width in sorted(set(TYPES.values())))
        raise UsageError(f"gguf has no {bits} bits", where="--quant_bits", fix=f"--quant_bits {have}")
    return config.decide(f"the usual with {bits} bits", quant_bits=bits, gguf_type=fitting[0])
