"""A run that stands still says where: every process's stacks and the rows in hand, then several processes end.

Promises: no step, evaluation batch or checkpoint that goes on for `--ddp_timeout` seconds without a sign stays silent.
One process is only reported on: it may be slow. Of several, one that stands still holds the others up for ever, so each
ends itself. Knows nothing of causes.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from swift.errors import TrainingError

if TYPE_CHECKING:
    from swift.train.trainer import SftTrainer

EXIT_CODE = 9  # as TrainingError
GRACE = 5.0  # seconds for the other processes to write down where they stand before the first one ends
SHOWN_ROWS = 8
# What collectives say when a process at the other end is gone.
_PEER_GONE = re.compile(r"closed by peer|connection reset|broken pipe|NCCL|gloo|remote process exited|socket", re.I)


class Watchdog(TrainerCallback):
    """A context around training; every event of the trainer is a sign of life."""

    def __init__(self, trainer: SftTrainer, timeout: float, run_dir: Path):
        self.trainer, self.timeout = trainer, timeout
        self.path = run_dir / f"stuck-process-{trainer.args.process_index}.txt"
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        trainer.add_callback(self)

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _sign(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.monotonic()

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_evaluate = on_save = on_log = _sign

    def _watch(self) -> None:
        while not self._over.wait(min(self.timeout / 4, 10.0)):
            silent = time.monotonic() - self._last
            if silent > self.timeout:
                self.report(f"no progress for {silent:.0f} s")
                if self.trainer.args.world_size > 1:
                    time.sleep(GRACE)
                    os._exit(EXIT_CODE)
                self._last = time.monotonic()

    def report(self, what: str, error: BaseException | None = None) -> None:
        """Write what happened, the rows in hand, where `error` came from and the stacks of all threads to stderr and to
        the run directory."""
        head = f"\n{self.process}: {what} in step {self.trainer.state.global_step + 1}, rows: {self.rows}\n"
        with self.path.open("a", encoding="utf-8") as file:
            for stream in (sys.stderr, file):
                stream.write(head + ("".join(traceback.format_exception(error)) if error else ""))
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)

    @property
    def process(self) -> str:
        args = self.trainer.args
        return f"process {args.process_index} of {args.world_size}"

    @property
    def rows(self) -> str:
        """Where the rows of the batch that was computed last come from."""
        rows, _ = self.trainer.in_hand
        named = [self.trainer.sources(row) for row in rows[:SHOWN_ROWS]]
        return (", ".join(named) or "none yet") + (" ..." if len(rows) > SHOWN_ROWS else "")

    def peer_gone(self, error: BaseException) -> TrainingError | None:
        """The error to show when another process ended in the middle of a step, None for any other error."""
        if (
            self.trainer.args.world_size == 1
            or not isinstance(error, RuntimeError)
            or not _PEER_GONE.search(str(error))
        ):
            return None
        self.report("another process is gone", error)
        return TrainingError(
            f"another process ended in the middle of step {self.trainer.state.global_step + 1}",
            where=self.process,
            fix="its own output says why; --resume_from_checkpoint auto goes on from the newest checkpoint",
        )
