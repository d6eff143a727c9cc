"""Where the time of training steps goes: forward, backward, optimizer, and the rest, which is waiting for data.

Promises: shares of a window's wall time. On an accelerator, whose work is only queued by these calls, there are none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

PARTS = ("forward", "backward", "optimizer")


class StepTimes(TrainerCallback):
    """Seconds of each part since the last `shares`."""

    def __init__(self, device: torch.device):
        self.measures = device.type == "cpu"
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._began = 0.0

    @contextmanager
    def forward(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds["forward"] += time.monotonic() - began

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around forward and backward: what isn't forward is backward."""
        began, forward = time.monotonic(), self.seconds["forward"]
        yield
        self.seconds["backward"] += time.monotonic() - began - (self.seconds["forward"] - forward)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds["optimizer"] += time.monotonic() - self._began

    def shares(self, window: float) -> dict[str, float]:
        """`forward_share` ... of `window` seconds of training; begins anew."""
        found = {f"{name}_share": round(min(value / window, 1.0), 4) for name, value in self.seconds.items()}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return found if self.measures else {}
