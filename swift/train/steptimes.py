"""Where the time of training steps goes: data, forward, backward, optimizer; the rest is logging and bookkeeping.

Promises: shares of a window's wall time. On CUDA, whose work is only queued by these calls, the stream's own events
say when it was done, and are read once per window; `data` is then the time in which the device had nothing to do. Other
accelerators have no shares. The parts carry their names in a profiler's trace too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import record_function
from transformers import TrainerCallback

PARTS = ("data", "forward", "backward", "optimizer")


class Wall:
    """Seconds by the clock on the wall."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}

    def now(self) -> float:
        return time.monotonic()

    def add(self, name: str, began: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + time.monotonic() - began

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call."""
        sums, self._sums = self._sums, {}
        return sums


class Events:
    """Seconds by the events of a CUDA stream."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, began: torch.cuda.Event) -> None:
        self._spans.append((name, began, self.now()))

    def take(self) -> dict[str, float]:
        spans, self._spans = self._spans, []
        sums: dict[str, float] = {}
        for name, began, ended in spans:
            ended.synchronize()
            sums[name] = sums.get(name, 0.0) + began.elapsed_time(ended) / 1000
        return sums


class StepTimes(TrainerCallback):
    """Seconds of each part since the last `take`."""

    def __init__(self, device: torch.device):
        self.measures = device.type in ("cpu", "cuda")
        self.clock: Any = Events() if device.type == "cuda" else Wall()
        self._optimizer = ExitStack()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Around a part; `step` is around forward and backward."""
        began = self.clock.now()
        with record_function(f"swift.{name}"):
            yield
        self.clock.add(name, began)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._optimizer.enter_context(self.span("optimizer"))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._optimizer.close()

    def take(self) -> dict[str, float]:
        """Seconds of `PARTS` where they can be measured; begins anew."""
        seconds = self.clock.take()
        if not self.measures:
            return {}
        seconds["backward"] = seconds.pop("step", 0.0) - seconds.get("forward", 0.0)
        return {name: max(seconds.get(name, 0.0), 0.0) for name in PARTS}
