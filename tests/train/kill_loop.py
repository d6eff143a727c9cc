"""A process that forks training runs and kills them with SIGKILL; started by test_kill.py, prints one JSON object.

Forking from a process that has imported everything but computed nothing makes a run cost a second instead of ten.
Usage: kill_loop.py DIRECTORY KIND SEED TIMED WRITES
KIND is lora or full; TIMED runs are killed by the clock, WRITES at a file operation.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests import tiny
from tests.train import support

ROWS = support.encoded_rows(24)
FILE_OPERATIONS = ("fsync", "replace", "mkdir", "unlink", "rmdir")


def train(run_dir: Path, kind: str) -> None:
    """One sitting: from the newest complete checkpoint, or from the beginning."""
    from transformers import AutoModelForCausalLM

    from swift import runs
    from swift.train import checkpoints

    cfg = support.config(
        tuner_type=kind,
        lora_dropout=0.1,
        save_steps=2,
        save_total_limit=2,
        num_train_epochs=2.0,
        logging_steps=1,
        val_dataset=("x",),
        eval_steps=4,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=4,
    )
    run_dir.mkdir(exist_ok=True)
    checkpoint, _ = checkpoints.newest_complete(run_dir)
    checkpoints.clean_leftovers(run_dir)
    runs.RunLog(run_dir / runs.LOG).truncate_after(checkpoints.step_of(checkpoint) if checkpoint else 0)
    if kind == "lora":
        model = support.lora(tiny.model("llama"), dropout=0.1)
    elif checkpoint:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
    else:
        model = tiny.model("llama")
    trainer = support.trainer(run_dir, model, ROWS, support.encoded_rows(4, seed=7), cfg)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def count_operations(limit: int | None) -> list[int]:
    """Count the calls that change directories or flush files; SIGKILL this process before call number `limit`."""
    counted = [0]

    def counting(function):
        def call(*args, **kwargs):
            counted[0] += 1
            if counted[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in FILE_OPERATIONS:
        setattr(os, name, counting(getattr(os, name)))
    return counted


def sitting(
    run_dir: Path, kind: str, after: float | None = None, at_operation: int | None = None
) -> tuple[bool, float, int]:
    """Fork a run, kill it after so many seconds or at that file operation; (was it killed, seconds, operations)."""
    read, write = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            counted = count_operations(at_operation)
            train(run_dir, kind)
            os.write(write, str(counted[0]).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    if after is not None:
        ended, status = 0, 0
        while not ended and time.monotonic() - start < after:
            time.sleep(0.005)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
    else:
        status = os.waitpid(child, 0)[1]
    operations = os.read(read, 100).decode()
    os.close(read)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the run failed with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status), time.monotonic() - start, int(operations or 0)


def main(directory: Path, kind: str, seed: int, timed: int, writes: int) -> dict:
    chance = random.Random(seed)
    _, seconds, operations = sitting(directory / "whole", kind)
    first = chance.sample(range(1, operations + 1), writes)
    results = []
    for number in range(timed + writes):
        run_dir = directory / f"killed{number}"
        killed = 0
        while killed < 40:
            if number < timed:
                was_killed, _, _ = sitting(run_dir, kind, after=chance.uniform(0.3, 1.0) * seconds * (1 + killed / 5))
            else:
                moment = first[number - timed] if killed == 0 else None
                was_killed, _, _ = sitting(run_dir, kind, at_operation=moment)
            if not was_killed:
                break
            killed += 1
        results.append({"kills": killed, **compare(directory / "whole", run_dir)})
    return {"operations": operations, "seconds": seconds, "results": results}


def compare(whole: Path, killed: Path) -> dict:
    names = sorted(p.name for p in whole.iterdir() if p.name.startswith("checkpoint-"))
    timeless = ("loss", "eval_loss", "grad_norm", "learning_rate", "token_acc", "step")
    logs = [[{k: r.get(k) for k in timeless} for r in support.records(path)] for path in (whole, killed)]
    return {
        "same_checkpoints": names == sorted(p.name for p in killed.iterdir() if p.name != "logging.jsonl"),
        "same_weights": all(support.same_weights(whole / name, killed / name) for name in names),
        "same_log": logs[0] == logs[1],
    }


if __name__ == "__main__":
    # What a run imports late is imported now, once, without computing anything.
    import transformers.models.llama.modeling_llama  # noqa: F401

    import swift.train.build
    import swift.train.run  # noqa: F401

    arguments = sys.argv[1:]
    print(json.dumps(main(Path(arguments[0]), arguments[1], *map(int, arguments[2:5]))))
