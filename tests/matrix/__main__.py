"""`make matrix`: every architecture of transformers that answers text, through the steps of tests.matrix.steps; those
that see or hear with pictures, videos and sounds.

Each architecture runs in a child process with a time limit, two beside each other. Results are kept in --results as
they come (one JSON file an architecture), so that a run that was stopped goes on; --again runs those that failed once
more. At the end the status file is written that `swift list-models` shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.matrix import runner

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--only", default="", help="architectures (model types), separated by commas")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds of a processor for one architecture")
    parser.add_argument("--budget", type=float, default=None, help="stop starting new ones after so many seconds")
    parser.add_argument("--again", action="store_true", help="run those that failed again")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--results", type=Path, default=ROOT / ".matrix")
    parser.add_argument("--status", type=Path, default=ROOT / "swift" / "catalog" / "architectures.toml")
    options = parser.parse_args()
    runner.let_torchvision_in()
    wanted = [name for name in options.only.split(",") if name] or runner.architectures()
    unknown = set(wanted) - set(runner.architectures())
    if unknown:
        parser.error(f"no such architecture, or none that answers text: {', '.join(sorted(unknown))}")
    options.results.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    left = []
    for name in wanted:
        known = runner.read(options.results, name)
        if known is None or options.fresh or options.only or (options.again and known["failed"]):
            left.append(name)
    print(f"{len(wanted)} architectures, {len(left)} to run", flush=True)
    deadline = None if options.budget is None else started + options.budget
    for done in runner.run_all(left, options.results, options.jobs, options.timeout, deadline):
        words = "verified" if not done["failed"] else json.dumps(done["failed"], ensure_ascii=False)
        print(f"{done['type']:<26} {done['seconds']:6.1f} s  {words}", flush=True)
    outcomes = [found for name in runner.architectures() if (found := runner.read(options.results, name))]
    if outcomes:
        runner.write_status(options.status, outcomes)
    good = sum(not found["failed"] for found in outcomes)
    print(f"{good} of {len(outcomes)} verified; {len(runner.architectures()) - len(outcomes)} have not run yet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
