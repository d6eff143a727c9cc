"""Runs as a page shows them: lines of the list, one run in full, its data report and its files."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

from swift import runs
from swift.advise.machines import nvidia_gpus
from swift.errors import UsageError
from swift.hub import human_bytes
from swift.web import forms
from swift.web.files import read_end, read_json, tail
from swift.web.jobs import memory_of
from swift.web.runlist import Run, checkpoints, curves, last_record, model_options, state_of

TRAINING = ("sft", "pt", "rlhf")
TABS = {"export": "export", "merge-lora": "export", "deploy": "deploy", "eval": "eval"}
REPORT_BYTES = 4 << 20
MOST_FILES = 300
GPU_SECONDS = 5.0
CONTENT_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)


def command_of(run: Run) -> str:
    """The command that made the run: that of its oldest job, else the one in args.json."""
    if run.jobs:
        return run.jobs[-1].command
    command = read_json(run.path / runs.ARGS).get("command") if run.path else None
    return command if isinstance(command, str) else ""


def line(run: Run) -> dict[str, Any]:
    """A line of the list."""
    last = last_record(run.path) if run.path else {}
    return {
        "id": run.id,
        "jobs": [job.id for job in run.jobs],
        "name": run.name,
        "command": command_of(run),
        "created": run.created,
        "state": state_of(run),
        "step": last.get("step"),
        "max_steps": last.get("max_steps"),
        "loss": last.get("loss"),
        "has_curves": bool(last),
    }


def detail(run: Run) -> dict[str, Any]:
    """Everything about one run."""
    job, path = run.job, run.path
    last = last_record(path) if path else {}
    shown, cut = tail(job.log) if job else ("", False)
    record = read_json(path / runs.ARGS) if path else {}
    command = command_of(run)
    state = state_of(run)
    return {
        **line(run),
        "code": job.code if job else None,
        "line": job.line if job else "",
        "log": shown,
        "log_cut": cut,
        "failure": _failure(run) if state == "failed" else "",
        "figures": _figures(run, last, state),
        "curves": curves(path) if path else {},
        "trains": command in TRAINING,
        "checkpoints": [_checkpoint(c) for c in reversed(checkpoints(path))] if path else [],  # the newest first
        "actions": actions(run),
        "form": _form(run, command, record),
        "address": _address(run) if command == "deploy" else None,
        "talk": _talk(run),
    }


def compared(run: Run) -> dict[str, Any]:
    return {"id": run.id, "name": run.name, "curves": curves(run.path) if run.path else {}}


def actions(run: Run) -> list[str]:
    """What can be done with a run now; each is the name of a button."""
    found = []
    job, path = run.job, run.path
    if job is not None and job.alive:
        found.append("kill" if job.state == "stopping" else "stop")
    elif path is not None and _can_go_on(run, path):
        found.append("resume")
    if path is not None and (path / "data_report.html").is_file():
        found.append("data_report")
    if path is not None:
        found.append("folder")
    if _report_of(run) is not None:
        found.append("eval_report")
    if _result(run) is not None or (command_of(run) == "deploy" and _address(run)):
        found.append("talk")
    if _form(run, command_of(run), {}) is not None:
        found.append("again")
    return found


def _can_go_on(run: Run, path: Path) -> bool:
    ended_early = state_of(run) in ("stopped", "failed", "lost")
    return ended_early and command_of(run) in TRAINING and bool(checkpoints(path))


def _result(run: Run) -> Path | None:
    """The model that a finished export has written."""
    job = run.job
    if job is None or job.state != "finished" or job.command not in ("export", "merge-lora"):
        return None
    told = job.told().get("model")
    return Path(told) if told and (Path(told) / "config.json").is_file() else None


def _report_of(run: Run) -> Path | None:
    """The report that a finished evaluation has written."""
    job = run.job
    if job is None or job.command != "eval":
        return None
    told = job.told().get("report")
    return Path(told) if told and Path(told).is_file() else None


def eval_report(run: Run) -> dict[str, Any]:
    """An evaluation's report as a page without scripts."""
    file = _report_of(run)
    if file is None:
        raise UsageError("this run has no report")
    return {"html": safe_report(file)}


def _figures(run: Run, last: dict[str, float], state: str) -> list[tuple[str, str]]:
    """(name, value) of what is shown as a row of figures."""
    found = []
    if last.get("max_steps"):
        found.append(("step", f"{last['step']:g} / {last['max_steps']:g}"))
    if state in ("running", "stopping") and last.get("eta_seconds") is not None:
        found.append(("eta", _clock(last["eta_seconds"])))
    if last.get("elapsed_seconds") is not None:
        found.append(("elapsed", _clock(last["elapsed_seconds"])))
    for name, form in (("loss", ".4f"), ("eval_loss", ".4f"), ("token_acc", ".1%"), ("learning_rate", ".2e")):
        if name in last:
            found.append((name, format(last[name], form)))
    if "tokens_per_second" in last:
        found.append(("tokens_per_second", f"{last['tokens_per_second']:.0f}"))
    found += [(name, f"{last[name]:.1%}") for name in ("mfu", "padding_share") if name in last]
    if "memory_gib" in last:
        found.append(("memory_gib", f"{last['memory_gib']:.2f} GiB"))
    held = memory_of(run.job) if run.job else 0
    if held:
        found.append(("memory_now", human_bytes(held)))
        found += [("gpu_now", words) for words in _gpus(int(time.monotonic() / GPU_SECONDS))]
    return found


@functools.lru_cache(maxsize=1)
def _gpus(moment: int) -> list[str]:
    """Memory in use of each GPU, asked once every GPU_SECONDS."""
    return [f"{human_bytes(total - free)} / {human_bytes(total)}" for _, total, free in nvidia_gpus()]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _failure(run: Run) -> str:
    """The last thing that a failed command said of itself: its `swift: ...` lines, else its last line."""
    if run.job is None:
        return ""
    shown, _ = tail(run.job.log, 1 << 14)
    lines = shown.split("\n")
    starts = [i for i, text in enumerate(lines) if text.startswith("swift: ")]
    return "\n".join(lines[starts[-1] : starts[-1] + 3]) if starts else next((x for x in reversed(lines) if x), "")


def _checkpoint(path: Path) -> dict[str, Any]:
    run = path.parent
    return {
        "name": path.name,
        "options": model_options(path),
        "merged": str(run / f"{path.name}-merged"),
    }


def _form(run: Run, command: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """The form that makes the run again: the tab it is on, and its fields."""
    if command not in (*TRAINING, *TABS):
        return None
    fields: dict[str, str] = {}
    if run.jobs:
        fields = forms.from_argv(run.jobs[-1].argv)
    elif record:
        fields = forms.from_record(command, record)
    return {"tab": TABS.get(command, "train"), "command": command, "fields": fields}


def _address(run: Run) -> str | None:
    """Where a deployment says it listens."""
    if run.job is None or not run.job.alive:
        return None
    return run.job.told().get("address")


def _talk(run: Run) -> dict[str, str] | None:
    """What the chat is to talk to: a deployment's address, or what an export has written."""
    if address := _address(run) if command_of(run) == "deploy" else None:
        return {"model": address}
    result = _result(run)
    return {"model": str(result)} if result else None


def data_report(run: Run) -> dict[str, Any]:
    """The run's data report as a page without scripts."""
    if run.path is None or not (run.path / "data_report.html").is_file():
        raise UsageError("this run has no data report")
    return {"html": safe_report(run.path / "data_report.html")}


def safe_report(file: Path) -> str:
    """The page, told that nothing in it may run or be fetched; it is shown in a sandbox as well."""
    return CONTENT_POLICY + read_end(file, REPORT_BYTES)[0]


def folder(run: Run) -> dict[str, Any]:
    """The run directory's files with their sizes."""
    if run.path is None:
        raise UsageError("this run has no directory")
    found = []
    for place, inner, files in os.walk(run.path):
        inner.sort()
        for name in sorted(files):
            file = Path(place) / name
            size = file.lstat().st_size if file.is_symlink() or file.is_file() else 0
            found.append((str(file.relative_to(run.path)), human_bytes(size)))
            if len(found) >= MOST_FILES:
                return {"path": str(run.path), "files": found}
    return {"path": str(run.path), "files": found}
