"""A run directory of `swift eval`: what was asked, the answers as they come, the results, the report.

    args.json         the options and where their values came from
    run.json          what the run depends on: a later command with the same goes on with an unfinished run
    answers/NAME.jsonl    answers as they came
    samples/NAME.jsonl    one record a question: prompt, options or output, decision, target
    results/NAME.json     the result of a finished benchmark
    eval_result.json, report.html    when all are finished

Promises: nothing that is answered is asked again; a directory is used by one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swift import __version__
from swift.config.commands import EvalConfig
from swift.engines.setup import Source
from swift.evaluate.answering import Answerer
from swift.evaluate.data import Documents
from swift.evaluate.plans import Wanted
from swift.evaluate.report import page
from swift.evaluate.results import BenchmarkResult, span
from swift.evaluate.store import Answers
from swift.runs import create_run_dir, ensure_writable_dir, write_json, write_text

log = logging.getLogger("swift")

RUN, RESULT, REPORT, LIST = "run.json", "eval_result.json", "report.html", "eval_result.jsonl"
# Options that change the speed of a run and not its answers.
WITHOUT_EFFECT = {"eval_num_proc", "max_batch_size", "dry_run", "compare", "eval_output_dir", "api_key", "hub_token"}


class EvalRun:
    """`folder` is its directory; `sets` the benchmarks with their documents."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], sets: Sequence[tuple[Wanted, Documents]]):
        self.folder, self._facts, self._sets = folder, dict(facts), list(sets)

    def facts(self) -> dict[str, Any]:
        return self._facts

    def missing(self) -> list[tuple[Wanted, Documents]]:
        """The benchmarks that aren't finished."""
        return [(one, docs) for one, docs in self._sets if not self._result_path(one).is_file()]

    def _result_path(self, one: Wanted) -> Path:
        return self.folder / "results" / f"{one.benchmark.name}.json"

    def measure(self, one: Wanted, documents: Documents, answerer: Answerer) -> None:
        """Ask and score one benchmark, and write its result and samples."""
        from swift.evaluate.harness import measure, primary_metric, version

        name = one.benchmark.name
        plan = one.plan(answerer)
        with Answers(self.folder / "answers" / f"{name}.jsonl") as answers:
            if answers.before:
                log.info("%s: %d answers are there already", name, answers.before)
            measured = measure(one.benchmark, documents, answerer, plan, answers, name)
            tokens, seconds = dict(answers.tokens), answers.seconds
        metric = primary_metric(one.benchmark, plan)
        value, stderr = measured.metrics[metric]
        subjects = {
            subject: {"n": part["n"], "score": part["metrics"][metric][0], "stderr": part["metrics"][metric][1]}
            for subject, part in measured.subjects.items()
            if subject
        }
        result = BenchmarkResult(
            benchmark=name,
            backend="Native",
            harness=f"lm-eval {version()}",
            metric=metric.removesuffix(",none"),
            score=value,
            stderr=stderr,
            n=measured.n,
            split=documents.split,
            mode=plan.mode,
            prompts="chat template" if plan.chat else "plain text",
            shots=plan.shots,
            unparsed=measured.unparsed,
            truncated=tokens.pop("truncated", 0),
            partial=documents.partial,
            tokens=tokens,
            seconds=seconds,
            metrics={key.removesuffix(",none"): {"score": v, "stderr": e} for key, (v, e) in measured.metrics.items()},
            subjects=subjects,
            categories=_categories(one.benchmark.categories, subjects),
            data={"files": len(documents.files), "first": str(documents.files[0]), "sha256": documents.digest},
        )
        self._facts.setdefault("engine", dict(answerer.facts))
        keep_result(self.folder, result, measured.samples)
        log.info("%s: %.2f %% %s after %s", name, 100 * value, result.metric, span(seconds))

    def results(self) -> list[BenchmarkResult]:
        paths = [self._result_path(one) for one, _ in self._sets]
        return [BenchmarkResult.from_json(json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def finish(folder: Path, facts: Mapping[str, Any], results: Sequence[BenchmarkResult]) -> None:
    """Write the report and, last, the result; add a line to the list of all runs in --eval_output_dir."""
    record = {**facts, "finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "run": str(folder)}
    record["results"] = [result.to_json() for result in results]
    write_text(folder / REPORT, page(results, facts))
    write_json(folder / RESULT, record)
    with open(folder.parent.parent / LIST, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def keep_result(folder: Path, result: BenchmarkResult, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write a finished benchmark's samples and, last, its result."""
    ensure_writable_dir(folder / "samples")
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    write_text(folder / "samples" / f"{result.benchmark}.jsonl", lines)
    ensure_writable_dir(folder / "results")
    write_json(folder / "results" / f"{result.benchmark}.json", result.to_json())


def _categories(categories: Mapping[str, Sequence[str]], subjects: Mapping[str, Any]) -> dict[str, Any]:
    """n and score of each group of subjects, weighted by size."""
    found = {}
    for name, members in categories.items():
        parts = [subjects[member] for member in members if member in subjects]
        n = sum(part["n"] for part in parts)
        if n and len(categories) > 1:
            found[name] = {"n": n, "score": sum(part["n"] * part["score"] for part in parts) / n}
    return found


@contextmanager
def open_run(
    config: EvalConfig, source: Source | None, sets: Sequence[Wanted], documents: Sequence[Documents]
) -> Iterator[EvalRun]:
    """The unfinished run of the same evaluation, else a new one."""
    identity = _identity(config, source, documents)
    home = Path(config.evaluate.eval_output_dir) / model_name(config, source)
    ensure_writable_dir(home)
    facts = {"model": _model(config, source), "swift": __version__, "args": config.flat()}
    for name in ("api_key", "hub_token"):
        if facts["args"].get(name):
            facts["args"][name] = "***"
    for folder in sorted(home.glob("v*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if not (folder / RUN).is_file() or (folder / RESULT).is_file():
            continue
        if json.loads((folder / RUN).read_text(encoding="utf-8"))["identity"] != identity:
            continue
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another process is at it
        try:
            log.info("going on with %s, which was not finished", folder)
            yield EvalRun(folder, facts, list(zip(sets, documents, strict=True)))
        finally:
            lock.release()
        return
    folder = create_run_dir(home)
    with FileLock(folder / ".lock"):
        write_json(folder / "args.json", facts["args"])
        write_json(folder / RUN, {"identity": identity})
        yield EvalRun(folder, facts, list(zip(sets, documents, strict=True)))


def safe_name(name: str) -> str:
    """A name as a directory and as the model's in a URL: other characters than letters, digits, - . _ become _."""
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name)


def model_name(config: EvalConfig, source: Source | None) -> str:
    """What the runs of a model are collected under."""
    if source is None:
        return safe_name(str(config.model.model or config.evaluate.eval_url))
    if source.home is not None and source.home.name.startswith("checkpoint-"):
        return f"{source.home.parent.name}-{source.home.name}"
    return (source.home or source.model.path).resolve().name.removesuffix(".gguf")


def _model(config: EvalConfig, source: Source | None) -> str:
    if source is None:
        return f"{config.model.model or 'the model'} at {config.evaluate.eval_url}"
    adapters = "".join(f" with {path}" for path in source.adapters)
    return f"{source.model.path}{adapters}"


def _identity(config: EvalConfig, source: Source | None, documents: Sequence[Documents]) -> str:
    """What answers depend on: options, the files of the model, and the questions."""
    options = {name: value for name, value in config.flat().items() if name not in WITHOUT_EFFECT}
    files = []
    for folder in () if source is None else (source.model.path, *source.adapters):
        found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        files += [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.is_file()]
    parts = [options, files, [d.digest for d in documents], __version__]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
