"""Which GGUF type is meant by --quant_bits and --gguf_type, and what to take instead of one that isn't written here."""

from __future__ import annotations

from swift.config.commands import ExportConfig
from swift.errors import UsageError

# the first of a width is its default
BITS = {
    32: ("F32",),
    16: ("F16", "BF16"),
    8: ("Q8_0",),
    6: ("Q6_K",),
    5: ("Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    4: ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
}
TYPES = {name: bits for bits, names in BITS.items() for name in names}
BEYOND = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L")  # of llama.cpp's own quantizer only
SEARCHED = tuple(name for name, bits in TYPES.items() if bits <= 6)  # rows help to write them


def decide_type(config: ExportConfig) -> ExportConfig:
    """--gguf_type and --quant_bits, each from the other; UsageError for what isn't written here."""
    kind, bits = config.export.gguf_type, config.quantization.quant_bits
    if kind in BEYOND:
        fix = f"--gguf_type Q4_K_S; or --gguf_type F16, then llama.cpp's own: llama-quantize F16.gguf OUT.gguf {kind}"
        raise UsageError(f"{kind} is written by llama.cpp only", where="--gguf_type", fix=fix)
    if kind is not None:
        if bits is not None and bits != TYPES[kind]:
            raise UsageError(
                f"{kind} has {TYPES[kind]} bits, not {bits}", where="--quant_bits", fix="leave out one of the two"
            )
        return config.decide(f"{kind} has", quant_bits=TYPES[kind])
    bits = bits or 8
    if bits not in BITS:
        have = ", ".join(map(str, sorted(BITS)))
        raise UsageError(f"gguf has no {bits} bits", where="--quant_bits", fix=f"--quant_bits {have}")
    return config.decide(f"the usual with {bits} bits", quant_bits=bits, gguf_type=BITS[bits][0])
