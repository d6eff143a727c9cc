"""What a run measures of itself between two records of its log: loss, accuracy, tokens, speed, time, memory.

Promises: the record of a window, and the mean speed of a sitting, as plain numbers; sums survive in a checkpoint. What
a window brought along from an earlier sitting counts for its loss, not for its speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swift.train import metrics
from swift.train.flops import Needed
from swift.train.losses import LossParts
from swift.train.peak import matmul_peak
from swift.train.steptimes import StepTimes

# Sums of a window that are the same in every process, or a mean over them.
MEANS = ("loss", "steps")
# Sums that make the speed of a window.
SPEED = ("inputs", "places", "flops")


class Meter:
    """`tally` holds the sums of the open window, `watch` the time, `times` where it goes; `acc_strategy` as the option.

    `dtype` is that of the model's products, `processes` the number that `values` are summed over.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, acc_strategy: str, processes: int):
        self.device, self.acc_strategy = device, acc_strategy
        self.tally = metrics.Tally(device)
        self.times = StepTimes(device)
        self.watch = metrics.Stopwatch()
        self.needed = Needed(model)
        self.tokens_seen = {"inputs": 0, "tokens": 0}
        peak = matmul_peak(device, dtype)
        self.peak = None if peak is None else peak * processes
        self._carried = dict.fromkeys(SPEED, 0.0)
        self._sitting: dict[str, float] = {}
        self._begun = False

    def begin(self) -> None:
        """Called when a step's batches are fetched; the first window begins with the first step."""
        if not self._begun:
            self._begun = True
            self.times.take()
            self.watch.window()

    def add_batch(
        self, loss: torch.Tensor, parts: LossParts | None, batch: Mapping[str, Any], rows: list[int], joined: bool
    ) -> None:
        """A computed batch; of one without `rows` (fillers) nothing counts. `joined`: nothing was done on padding."""
        mask = batch["attention_mask"]
        work = self.needed.of(mask, batch.get("labels"))
        if not rows:
            self.tally.add_batch(loss, parts, *3 * [torch.zeros((), device=mask.device)])
            return
        tokens = mask.sum()
        places = tokens if joined else torch.tensor(mask.numel(), device=mask.device)
        self.tally.add_batch(loss, parts, tokens, places, work)

    def record(self, values: Mapping[str, float]) -> dict[str, float]:
        """Of a window whose sums over all processes are `values` and which has at least one step; begins the next."""
        self.tally.reset()
        for name in self.tokens_seen:
            self.tokens_seen[name] += int(values[name])
        found: dict[str, float] = {}
        share = metrics.accuracy(values, self.acc_strategy)
        if share is not None:
            found[metrics.ACCURACY[self.acc_strategy]] = share
        window = {name: values[name] - self._carried[name] for name in SPEED}
        self._carried = dict.fromkeys(SPEED, 0.0)
        window |= {"seconds": self.watch.window(), **self.times.take()}
        for name, value in window.items():
            self._sitting[name] = self._sitting.get(name, 0.0) + value
        return found | self._speed(window)

    def sitting(self) -> dict[str, float]:
        """The mean speed of all windows so far, in this sitting; {} before the first."""
        return self._speed(self._sitting) if self._sitting else {}

    def _speed(self, sums: Mapping[str, float]) -> dict[str, float]:
        seconds = sums["seconds"]
        found = {"tokens_per_second": sums["inputs"] / seconds}
        found["padding_share"] = 1 - sums["inputs"] / sums["places"] if sums["places"] else 0.0
        found["flops_per_second"] = sums["flops"] / seconds
        if self.peak is not None:
            found["mfu"] = found["flops_per_second"] / self.peak
        parts = {name: value for name, value in sums.items() if name not in (*SPEED, "seconds")}
        found |= {f"{name}_share": round(min(value / seconds, 1.0), 4) for name, value in parts.items()}
        return found | {"memory_gib": metrics.peak_memory_gib(self.device)}

    def restore(self, values: Mapping[str, float], tokens_seen: Mapping[str, int], seconds: float) -> None:
        """Go on with the window that a checkpoint was written in."""
        self.tally.restore(values)
        self.tokens_seen = dict(tokens_seen)
        self._carried = {name: values[name] for name in SPEED}
        self.watch = metrics.Stopwatch(seconds)

    def start(self, step: int) -> None:
        """The clock of a sitting that begins after `step` steps."""
        self.watch = metrics.Stopwatch(self.watch.earlier, step)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What is computed inside doesn't count."""
        sums = self.tally.values()
        try:
            yield
        finally:
            self.tally.restore(sums)
            self.times.take()
