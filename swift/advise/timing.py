"""How long it takes: training from the operations it needs, generation from the bytes it must read.

Promises: a range, from the share of the peak that training usually reaches on such a device. Knows nothing of a
machine's cooling, disks or neighbours; the progress bar's figure after ten steps is better than any of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from swift.advise.layers import Shape
from swift.advise.machines import Machine
from swift.advise.memory import Training, weight_bytes

# share of the peak that training reaches, from small batches with stock kernels to large ones
REACHED = {"cuda": (0.2, 0.45), "npu": (0.15, 0.35), "xpu": (0.15, 0.35), "mps": (0.15, 0.35), "cpu": (0.2, 0.5)}
QUANTIZED_COST = 1.3  # dequantizing 4-bit or 8-bit weights before each product
BANDWIDTH_REACHED = (0.4, 0.75)


@dataclass(frozen=True)
class Range:
    low: float
    high: float

    def scaled(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)


def flops_per_token(shape: Shape, training: Training, length: float) -> float:
    """Operations per trained token: forward, backward to the activations, to the weights (full), and recomputation."""
    forward = 2 * (shape.active - shape.embedding) + 2 * shape.embedding * training.label_share
    attention = sum(2 * (x.query + x.attended) * min(length / 2, x.window or length) for x in shape.layers)
    forward += attention
    passes = 3.0 if training.full else 2.0
    if training.checkpointing:
        passes += 1.0
    return passes * forward


def training_seconds(shape: Shape, training: Training, machine: Machine, tokens: float, length: float) -> Range:
    """Seconds for `tokens` tokens (padding included) in rows of `length`, on all of the machine's devices."""
    peak = machine.single if training.dtype == "float32" else machine.half
    work = tokens * flops_per_token(shape, training, length) * (QUANTIZED_COST if training.weight_bits else 1.0)
    low, high = REACHED[machine.kind]
    return Range(work / (peak * machine.count * high), work / (peak * machine.count * low))


def tokens_per_second(
    shape: Shape, machine: Machine, dtype: str, weight_bits: int = 0, stored_bytes: int | None = None
) -> Range:
    """Tokens per second of one answer: every active weight is read once per token."""
    weights = weight_bytes(shape, dtype, weight_bits, True, stored_bytes)
    share = min(1.0, shape.active / max(1, shape.parameters - (0 if shape.tied else shape.embedding)))
    low, high = BANDWIDTH_REACHED
    return Range(machine.bandwidth * low / (weights * share), machine.bandwidth * high / (weights * share))


def human_seconds(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 86400:.3g} days"
