"""`--profile true`: what the operations of a few steps cost, as a trace (Perfetto, chrome://tracing) and as a table.

Promises: the first step, in which things are prepared, isn't recorded; a run that ends, fails or is stopped earlier
leaves what was recorded until then. Every process writes its own trace.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from swift import runs
from swift.train.callbacks import Reporter

DIRECTORY = "profile"
ROWS = 15

log = logging.getLogger("swift")


class Profile(Reporter):
    """Records `steps` steps of this sitting, from its second on, into `run_dir`/profile."""

    def __init__(self, run_dir: Path, steps: int):
        self.directory, self.steps = run_dir / DIRECTORY, steps
        self._done = self._recorded = 0
        self._rank = 0
        self._profiler: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.max_steps - state.global_step == 1
        if self._profiler is None and (self._done == 1 or (self._done == 0 and last)):
            self._rank = args.process_index
            kinds = [ProfilerActivity.CPU]
            if args.device.type == "cuda":
                kinds.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=kinds, profile_memory=True)
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._done += 1
        self._recorded += self._profiler is not None
        if self._recorded == self.steps:
            self.close()

    def close(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        self.directory.mkdir(exist_ok=True)
        trace = self.directory / f"trace-{self._rank}.json.gz"
        profiler.export_chrome_trace(str(trace))
        on_device = ProfilerActivity.CUDA in profiler.activities
        order = "self_cuda_time_total" if on_device else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=40)
        runs.write_text(self.directory / f"operations-{self._rank}.txt", table + "\n")
        if self._rank == 0:
            steps = f"{self._recorded} step" + "s" * (self._recorded != 1)
            log.warning("%s\ntrace of %s: %s (open it in ui.perfetto.dev)", table, steps, trace)
