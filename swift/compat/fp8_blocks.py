"""transformers takes the block size of an FP8 checkpoint from the ratio of weight and scale sizes. Where a
dimension isn't a multiple of the block (DeepSeek's 576 = 4.5 x 128, or 192 = 1.5 x 128), that is an error or,
worse, silently wrong weights.

Concerns transformers 5.10 to 5.23 (`Fp8Dequantize._dequantize_one`). Within `true_fp8_blocks()` the block size that
config.json states is used wherever the scale grid is the one that it implies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def true_fp8_blocks() -> Iterator[None]:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    guessing = Fp8Dequantize._dequantize_one

    def dequantize(self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype=None) -> torch.Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block is None or quantized.dtype != torch.float8_e4m3fn or scales.ndim < 2 or not scales.is_floating_point():
            return guessing(self, quantized, scales, output_dtype=output_dtype)
        rows, columns = quantized.shape[-2:]
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if tuple(scales.shape[-2:]) != grid or (rows % block[0] == 0 and columns % block[1] == 0):
            return guessing(self, quantized, scales, output_dtype=output_dtype)
        spread = scales.float().repeat_interleave(block[0], -2)[..., :rows, :]
        spread = spread.repeat_interleave(block[1], -1)[..., :columns]
        return (quantized.float() * spread).to(output_dtype or torch.bfloat16)

    Fp8Dequantize._dequantize_one = dequantize
    try:
        yield
    finally:
        Fp8Dequantize._dequantize_one = guessing
