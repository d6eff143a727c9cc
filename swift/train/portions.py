"""How the rows of one step are portioned: per pass, passes per step, processes. The product is the step.

Promises: a run goes on with other portions of the same step, in the same order of rows; its losses are then equal to
rounding, no longer to the bit. Knows numbers only.
"""

from __future__ import annotations

from typing import NamedTuple

from swift.errors import CheckpointError


class Portions(NamedTuple):
    """Rows per pass and process, passes per step, processes."""

    batch: int
    accumulation: int
    processes: int

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch * self.accumulation * self.processes

    def __str__(self) -> str:
        several = f" x {self.processes} processes" if self.processes > 1 else ""
        return f"{self.batch} rows x {self.accumulation} passes{several}"


def resumed(old: Portions, processes: int, batch: int | None, accumulation: int | None, drop_last: bool) -> Portions:
    """The portions of a run that goes on with `processes`; `batch` and `accumulation` where the user typed them.

    CheckpointError when a step would have other rows than before.
    """
    if batch is None and accumulation is None:
        batch = old.batch
        if old.rows % (batch * processes) and old.rows % processes == 0:
            batch = _largest_divisor(old.rows // processes, batch)
    if batch is None:
        batch = old.rows // (accumulation * processes)
    if accumulation is None:
        accumulation = old.rows // (batch * processes)
    new = Portions(batch, accumulation, processes)
    if new.rows != old.rows:
        raise CheckpointError(
            f"a step of the run has {old.rows} rows ({old}), this would have {new.rows or 'none'} ({new})",
            where=f"{processes} process(es)",
            fix="choose --per_device_train_batch_size and --gradient_accumulation_steps so that rows x passes x "
            f"processes = {old.rows}, or start anew from these weights with --resume_only_model true",
        )
    if drop_last and new != old:
        raise CheckpointError(
            "--dataloader_drop_last true drops other rows with other portions of a step", fix=f"use {old} as before"
        )
    return new


def smaller(portions: Portions) -> Portions | None:
    """The same step in passes of at most half the rows; None when a pass has one row."""
    if portions.batch == 1:
        return None
    per_process = portions.batch * portions.accumulation
    batch = _largest_divisor(per_process, portions.batch // 2)
    return Portions(batch, per_process // batch, portions.processes)


def _largest_divisor(number: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if number % n == 0)
