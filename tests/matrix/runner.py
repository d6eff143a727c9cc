"""Runs architectures in child processes that are forked from one that has the libraries loaded, and keeps results.

Promises: a child that hangs or dies takes nothing with it; what it had reported stands. Needs `os.fork`.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from swift.catalog.status import BY_DESIGN, status_text
from tests.matrix import senses
from tests.matrix.checkpoint import class_of
from tests.matrix.steps import STEP_ORDER, run_steps

PATIENCE = 10  # times as long as its time on a processor a child may take, so that a busy machine stops none
PRELOADED = (
    *("bitsandbytes", "datasets", "matplotlib.backends.backend_agg", "matplotlib.figure", "pandas", "peft", "trl"),
    *("peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion", "transformers.integrations.bitsandbytes"),
    *("swift.config.parse", "swift.export.calibration", "swift.launch", "swift.train.tensorboard"),
    *("transformers.models.auto.processing_auto", "transformers.models.auto.video_processing_auto"),
    *("swift.advise.fit", "swift.data.encoded", "swift.engines.pt", "swift.export.export", "swift.export.merge"),
    *("swift.models.quantizers", "swift.models.tuners", "swift.train.arguments", "swift.train.benchmarks"),
    *("swift.train.build", "swift.train.curves", "swift.train.loop", "swift.train.run", "swift.train.sft"),
    *("transformers.trainer", "transformers.quantizers.quantizer_bnb_4bit", "transformers.generation"),
)


class Child(NamedTuple):
    name: str
    pid: int
    root: Path
    started: float


def architectures() -> list[str]:
    """The model types that transformers has a causal language model for, but for those that aren't one by design and
    names of whole multimodal models for their text part, which is here under its own name; and those that see or hear.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    texts = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not senses.sees(name)]
    return [*(name for name in texts if name not in BY_DESIGN and not _another(name)), *senses.RECIPES]


def _another(model_type: str) -> bool:
    """Whether the class of this model type has a config of another type."""
    import transformers

    config = getattr(getattr(transformers, class_of(model_type)), "config_class", None)
    return config is not None and config.model_type != model_type


def read(results: Path, name: str) -> dict[str, Any] | None:
    file = results / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def run_all(
    names: list[str], results: Path, jobs: int, timeout: float, deadline: float | None = None
) -> Iterator[dict[str, Any]]:
    """The outcome of each architecture as it ends. None is started after `deadline` (of time.monotonic); `timeout` is
    in seconds of a processor.
    """
    _load_libraries()
    waiting, running = list(names), []
    try:
        while waiting or running:
            late = deadline is not None and time.monotonic() > deadline
            while waiting and not late and len(running) < jobs:
                running.append(_start(waiting.pop(0), results, timeout))
            if late and not running:
                return
            for child in list(running):
                ended = _ended(child, timeout)
                if ended is not None:
                    running.remove(child)
                    yield _finish(child, results, ended)
            time.sleep(0.05)
    finally:
        for child in running:
            _kill(child)
            shutil.rmtree(child.root, ignore_errors=True)


@functools.cache
def let_torchvision_in() -> Any:
    """Without its operators torchvision can't be imported: its build for CUDA beside a torch for CPUs has none. Images
    and videos need none of them.
    """
    import importlib.util

    import torch

    if importlib.util.find_spec("torchvision") is None or torch.version.cuda:
        return None
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators  # which are there for as long as this is


def _load_libraries() -> None:
    """What every child needs, loaded once."""
    import gc
    import importlib

    import torch
    import transformers

    from swift.train import curves

    let_torchvision_in()
    for name in PRELOADED:
        importlib.import_module(name)
    curves.IMAGES.clear()  # half of the time would go to pictures in which no architecture shows
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    gc.freeze()  # collections in the children pass over all this


def _start(name: str, results: Path, timeout: float) -> Child:
    root = Path(tempfile.mkdtemp(prefix=f"matrix-{name}-"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            seconds = max(1, round(timeout))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            _child(name, root, results)
            code = 0
        finally:
            os._exit(code)
    return Child(name, pid, root, time.monotonic())


def _child(name: str, root: Path, results: Path) -> None:
    log = os.open(results / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(root)
    outcome: dict[str, str | None] = {}

    def report(step: str, reason: str | None) -> None:
        outcome[step] = reason
        (root / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")

    run_steps(name, root, report)


def _ended(child: Child, timeout: float) -> str | None:
    """None while it runs, "" when it ended by itself, else how it ended, in words."""
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid == 0:
        if time.monotonic() - child.started < PATIENCE * timeout:
            return None
        _kill(child)
        return f"not done in {PATIENCE * timeout:.0f} seconds"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and _used_up(usage, timeout):
        return f"not done in {timeout:.0f} seconds of a processor"
    if os.WIFSIGNALED(status):
        return f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
    return ""


def _used_up(usage: Any, timeout: float) -> bool:
    return usage.ru_utime + usage.ru_stime >= timeout - 0.5


def _kill(child: Child) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not called setsid yet, or is gone
        os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


def _finish(child: Child, results: Path, ended: str) -> dict[str, Any]:
    file = child.root / "outcome.json"
    outcome = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for step in STEP_ORDER:
        if step not in outcome:
            outcome[step] = ended or "the process ended early"
            break
    shutil.rmtree(child.root, ignore_errors=True)
    told = {step: reason.replace(f"{child.root}/", "") for step, reason in outcome.items() if reason}
    failed = {step: reason for step, reason in told.items() if not reason.startswith("needs ")}
    found = {
        "type": child.name,
        "architecture": class_of(child.name),
        "failed": failed,
        "seconds": round(time.monotonic() - child.started, 1),
    }
    (results / f"{child.name}.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def write_status(path: Path, outcomes: list[dict[str, Any]]) -> None:
    import transformers

    path.write_text(status_text(outcomes, transformers.__version__), encoding="utf-8")
