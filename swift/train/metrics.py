"""What a run counts while it trains: loss, accuracy, tokens, time and memory, as plain numbers.

Promises: sums are kept on the device (one transfer per logging step) and survive in a checkpoint, so that a resumed
run logs what an undisturbed one would. Knows nothing of the trainer.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping

import torch

from swift.models.device import CARDS
from swift.train.losses import LossParts

FIELDS = ("loss", "steps", "right", "tokens", "right_rows", "rows", "inputs", "places", "flops")


class Tally:
    """Running sums of one logging window: `FIELDS`, float64 on the device (float32 where that has no float64)."""

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(len(FIELDS), dtype=dtype, device=device)

    def add_batch(
        self,
        loss: torch.Tensor,
        parts: LossParts | None,
        inputs: torch.Tensor,
        places: torch.Tensor,
        flops: torch.Tensor,
    ) -> None:
        """`loss`: the batch's share of its step's mean loss. `parts` is None where the model hides its logits.
        `inputs` tokens, `places` that were computed, padding with them, `flops` needed: scalars.
        """
        zero = torch.zeros((), device=self.sums.device)
        counts = (parts.right, parts.tokens, parts.right_rows, parts.rows) if parts else (zero, zero, zero, zero)
        values = (loss, zero, *counts, inputs, places, flops)
        self.sums += torch.stack([v.detach().to(self.sums) for v in values])

    def end_step(self) -> None:
        self.sums[FIELDS.index("steps")] += 1

    def values(self) -> dict[str, float]:
        return dict(zip(FIELDS, self.sums.tolist(), strict=True))

    def restore(self, values: Mapping[str, float]) -> None:
        self.sums.copy_(torch.tensor([values[name] for name in FIELDS], dtype=torch.float64))

    def reset(self) -> None:
        self.sums.zero_()


ACCURACY = {"token": "token_acc", "seq": "seq_acc", "row": "accuracy"}


def accuracy(values: Mapping[str, float], strategy: str) -> float | None:
    """Right tokens over tokens (`token`), or rows that are right over rows (`seq`: throughout; `row`: by their label);
    None without any."""
    right, all_ = ("right", "tokens") if strategy == "token" else ("right_rows", "rows")
    return values[right] / values[all_] if values[all_] else None


def peak_memory_gib(device: torch.device) -> float:
    """The most memory used so far: of the accelerator where there is one, of the process otherwise."""
    if device.type in CARDS:
        return getattr(torch, device.type).max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Stopwatch:
    """Seconds of training, over all sittings of a run, and the pace of this one, begun after `first_step` steps."""

    def __init__(self, earlier_seconds: float = 0.0, first_step: int = 0):
        self.earlier, self.first_step = earlier_seconds, first_step
        self.start = self.mark = time.monotonic()
        self.paused_in_window = 0.0

    def elapsed(self) -> float:
        return self.earlier + time.monotonic() - self.start

    def pause(self, seconds: float) -> None:
        """Evaluation or saving took these seconds: they don't count towards the window's tokens per second."""
        self.paused_in_window += seconds

    def window(self) -> float:
        """Seconds of pure training since the last call."""
        now = time.monotonic()
        seconds = max(now - self.mark - self.paused_in_window, 1e-9)
        self.mark, self.paused_in_window = now, 0.0
        return seconds

    def eta(self, step: int, last_step: int) -> float:
        """Seconds from `step` to `last_step`, by the mean pace of this sitting, pauses included."""
        done = max(step - self.first_step, 1)
        return (last_step - step) * (time.monotonic() - self.start) / done
