"""The layouts in which checkpoints hold small integers: AWQ (GEMM), GPTQ, and block-FP8; packing and unpacking.

A matrix is [rows (outputs), columns (inputs)], quantized in groups of columns: weight = (code - zero) * scale.

  AWQ   qweight int32 [columns, rows / 8], eight outputs a word, in the order 0 2 4 6 1 3 5 7
        qzeros int32 [groups, rows / 8] likewise, scales float16 [groups, rows]
  GPTQ  qweight int32 [columns * bits / 32, rows], consecutive inputs a word, in order; scales float16 [groups, rows]
        qzeros int32 [groups, rows * bits / 32], each one less than the zero point (checkpoint_format gptq_v2: itself)
        g_idx int32 [columns], the group of each column
  FP8   weight float8_e4m3fn [rows, columns], weight_scale_inv float32, one for each block of 128 x 128

3-bit GPTQ, whose values straddle words, is not known here.
"""

from __future__ import annotations

import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP8_MAX = 448.0  # the largest float8_e4m3fn
FP8_BLOCK = 128


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., n] with values below 2**bits -> int32 [..., n * bits / 32]; the first value in the lowest bits."""
    per_byte = 8 // bits
    split = codes.view(*codes.shape[:-1], -1, per_byte)
    packed = split[..., 0].clone()
    for i in range(1, per_byte):
        packed |= split[..., i] << (bits * i)
    return packed.contiguous().view(torch.int32)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack`: int32 [..., n] -> uint8 [..., n * 32 / bits]."""
    packed = words.contiguous().view(torch.uint8)
    if bits == 8:
        return packed
    parts = [(packed >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.stack(parts, dim=-1).flatten(-2)


def pack_awq(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
    """codes uint8 [rows, columns], scales and zeros [rows, groups] -> the layer's tensors."""
    order = torch.tensor(AWQ_ORDER, device=codes.device)

    def words(values: torch.Tensor) -> torch.Tensor:
        eights = values.to(torch.uint8).T.reshape(values.shape[1], -1, 8)
        return pack(eights[..., order].flatten(1), 4)

    return {"qweight": words(codes), "qzeros": words(zeros), "scales": scales.half().T.contiguous()}


def unpack_awq(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The weight [rows, columns] that an AWQ layer's tensors stand for."""
    back = torch.argsort(torch.tensor(AWQ_ORDER))

    def values(words: torch.Tensor) -> torch.Tensor:
        eights = unpack(words, 4).view(words.shape[0], -1, 8)
        return eights[..., back].flatten(1)  # [columns or groups, rows]

    codes, zeros, scales = values(tensors["qweight"]), values(tensors["qzeros"]), tensors["scales"]
    return _dequantize(codes, zeros, scales, dtype).T.contiguous()


def pack_gptq(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, group: int
) -> dict[str, torch.Tensor]:
    """codes uint8 [rows, columns], scales and zeros (1 ... 2**bits - 1) [rows, groups] -> the layer's tensors."""
    columns = codes.shape[1]
    return {
        "qweight": pack(codes.contiguous(), bits).T.contiguous(),
        "qzeros": pack((zeros.to(torch.uint8) - 1).T.contiguous(), bits),
        "scales": scales.half().T.contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32, device=codes.device) // group,
    }


def unpack_gptq(tensors: dict[str, torch.Tensor], dtype: torch.dtype, bits: int, offset: int = 1) -> torch.Tensor:
    """The weight [rows, columns] of a GPTQ layer; `offset` is what the stored zero points lack (0 in gptq_v2)."""
    codes = unpack(tensors["qweight"].T, bits).T  # [columns, rows]
    zeros = (unpack(tensors["qzeros"], bits) + offset) & (2**bits - 1)
    scales = tensors["scales"]
    groups = tensors["g_idx"].long() if "g_idx" in tensors else None
    if groups is None or torch.equal(groups, torch.arange(len(codes)) // (len(codes) // len(scales))):
        return _dequantize(codes, zeros, scales, dtype).T.contiguous()
    shifted = codes.to(torch.int16) - zeros.to(torch.int16)[groups]
    return (shifted.float() * scales.float()[groups]).to(dtype).T.contiguous()


def _dequantize(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """codes [columns, rows], zeros and scales [groups, rows] -> [columns, rows]; computed in float32, rounded once."""
    groups, rows = scales.shape
    shifted = codes.view(groups, -1, rows).float().sub_(zeros.float()[:, None])
    return shifted.mul_(scales.float()[:, None]).to(dtype).view(-1, rows)


def pack_fp8(weight: torch.Tensor, block: int = FP8_BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [rows, columns], float32 scales [ceil(rows / block), ceil(columns / block)]) of a weight: the
    largest value of every block becomes 448. Blocks at the edges may be smaller.
    """
    rows, columns = weight.shape
    tall, wide = -(-rows // block), -(-columns // block)
    padded = torch.nn.functional.pad(weight.float(), (0, wide * block - columns, 0, tall * block - rows))
    blocks = padded.view(tall, block, wide, block)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / FP8_MAX
    scaled = (blocks / scales[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return scaled.view(tall * block, wide * block)[:rows, :columns].contiguous(), scales


def unpack_fp8(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: int = FP8_BLOCK) -> torch.Tensor:
    """The weight [..., rows, columns] that block-FP8 matrices stand for; computed in float32, rounded once."""
    rows, columns = weight.shape[-2:]
    plain = weight.to(torch.float32, copy=True)
    if rows % block or columns % block:
        spread = scales.float().repeat_interleave(block, -2)[..., :rows, :]
        return plain.mul_(spread.repeat_interleave(block, -1)[..., :columns]).to(dtype)
    blocks = plain.view(*weight.shape[:-2], rows // block, block, columns // block, block)
    blocks.mul_(scales.float()[..., :, None, :, None])
    return plain.to(dtype)
