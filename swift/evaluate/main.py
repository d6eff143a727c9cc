"""`swift eval`: from the command line's options to scores and their report.

Promises: names, arguments, data and files are checked before weights are loaded; --dry_run does that alone and writes
nothing; every answer is on disk when it is there, so the same command after a kill asks only what is missing. How a
number was made (backend, mode, prompts, examples, metric, split, n) stands beside it everywhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swift.config.commands import EngineConfig, EvalConfig
from swift.config.record import explain
from swift.engines import setup
from swift.engines.options import check_backend
from swift.errors import MissingPackage, NotBuiltYet, SwiftError, UsageError
from swift.evaluate.answering import Answerer
from swift.evaluate.data import Documents, load_documents
from swift.evaluate.plans import Wanted, wanted
from swift.evaluate.results import BenchmarkResult
from swift.evaluate.run import finish, open_run
from swift.runs import announce
from swift.say import speak

log = logging.getLogger("swift")

DEFAULT_BENCHMARK = "ARC_c"
NOT_HERE = {
    "loss_scale": "it concerns training",
    "padding_side": "it concerns batches of training",
    "max_length": "--max_model_len bounds prompt and answer",
    "truncation_strategy": "a prompt that is too long loses its beginning, and the report counts those",
}


def main(config: EvalConfig) -> int:
    """Run `swift eval` and return its exit code."""
    speak(stream="stderr")  # stdout is for the table
    config = decide(config)
    if config.evaluate.compare and not _has_model(config):
        return compare_only(config)
    if config.evaluate.eval_backend != "Native":
        from swift.evaluate.external import run_external

        return run_external(config, report)
    sets = wanted(config)
    _check_code(config, sets)
    inner, source = EngineConfig().take(config), None
    if config.evaluate.eval_url is None:
        check_backend(inner)
        if inner.engine.infer_backend != "pt":
            raise NotBuiltYet("only the pt engine scores yet", where="--infer_backend", fix="--infer_backend pt")
        inner, source = setup.find_source(inner)
        config = config.take(inner)
        sets = wanted(config)
    documents = [_load(one) for one in sets]
    if config.common.dry_run:
        print(explain(config))
        return 0
    _need_harness()
    with open_run(config, source, sets, documents) as run:
        missing = run.missing()
        answerer = build(config, inner, source) if missing else None
        try:
            for one, docs in missing:
                run.measure(one, docs, _present(answerer))
        except SwiftError as error:
            log.warning("stopped; what is answered is kept in %s, and the same command goes on from there", run.folder)
            raise error
        finally:
            if answerer is not None:
                answerer.close()
        return report(config, run.folder, run.facts(), run.results())


def decide(config: EvalConfig) -> EvalConfig:
    for name, why in NOT_HERE.items():
        if config.given(name):
            raise UsageError(f"has no effect here: {why}", where=f"--{name}", fix="leave it out")
    evaluate = config.evaluate
    if evaluate.eval_url is not None:
        for name in ("adapters", "merge_lora", "max_batch_size", "infer_backend", "torch_dtype"):
            if config.given(name):
                raise UsageError("--eval_url names a model that runs elsewhere", where=f"--{name}", fix="leave one out")
    elif evaluate.api_key is not None:
        raise UsageError("is for the endpoint that --eval_url names", where="--api_key", fix="add --eval_url URL")
    if evaluate.eval_backend == "Native" and evaluate.eval_url is None and config.engine.infer_backend != "pt":
        raise NotBuiltYet(
            "the Native backend loads the model with pt, or asks a server",
            where=f"--infer_backend {config.engine.infer_backend}",
            fix=f"swift deploy --infer_backend {config.engine.infer_backend} ..., then swift eval --eval_url http://HOST:PORT/v1",
        )
    if evaluate.eval_backend == "Native" and evaluate.eval_python is not None:
        raise UsageError("is for OpenCompass and EvalScope", where="--eval_python", fix="leave it out")
    if evaluate.eval_backend == "Native" and evaluate.extra_eval_args:
        raise UsageError(
            "the Native backend has no arguments of its own",
            where="--extra_eval_args",
            fix="--eval_dataset_args sets what can be set",
        )
    if not evaluate.eval_dataset and (not evaluate.compare or _has_model(config)):
        config = config.decide("nothing was named", eval_dataset=(DEFAULT_BENCHMARK,))
    return config


def _has_model(config: EvalConfig) -> bool:
    return bool(config.model.model or config.model.adapters or config.evaluate.eval_url)


def _check_code(config: EvalConfig, sets: list[Wanted]) -> None:
    for one in sets:
        if one.benchmark.runs_code and not config.evaluate.allow_code_execution:
            raise UsageError(
                f"{one.benchmark.name} runs the code that the model writes",
                where="--eval_dataset",
                fix="--allow_code_execution true runs it in a process without network and with limits",
            )


def _need_harness() -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise MissingPackage("evaluation needs lm-evaluation-harness", fix="pip install 'swift-lm[eval]'")


def _load(one: Wanted) -> Documents:
    documents = load_documents(one.benchmark, one.wish)
    log.info("%s: %d questions from %s", one.benchmark.name, documents.count, documents.files[0].parent)
    if documents.partial:
        from swift.evaluate.report import named

        log.warning("%s", named(one.benchmark.name, documents.partial))
    return documents


def build(config: EvalConfig, inner: EngineConfig, source: setup.Source | None) -> Answerer:
    """Load the model, or reach for the endpoint."""
    evaluate = config.evaluate
    if evaluate.eval_url is not None:
        from swift.evaluate.endpoint import Endpoint

        endpoint = Endpoint.reach(evaluate.eval_url, config.model.model, evaluate.api_key, evaluate.eval_num_proc)
        if not endpoint.scores:
            log.warning("%s gives no log-probabilities of a prompt: questions are asked by generation", endpoint.name)
        return endpoint
    from swift.evaluate.local import LocalModel

    assert source is not None
    model, tokenizer, encoder = setup.load_pt(inner, source)
    chats = config.chat.use_chat_template and tokenizer.chat_template is not None or config.chat.template is not None
    return LocalModel(model, tokenizer, encoder, config.model.max_model_len, inner.engine.max_batch_size, chats)


def _present(answerer: Answerer | None) -> Answerer:
    assert answerer is not None
    return answerer


def report(config: EvalConfig, folder: Path, facts: Mapping[str, Any], results: Sequence[BenchmarkResult]) -> int:
    """Write the report and print the table, and the comparisons asked for."""
    from swift.evaluate import report as texts

    finish(folder, facts, results)
    print(texts.table(results))
    for line in texts.remarks(results):
        log.info(line)
    for other in config.evaluate.compare:
        from swift.evaluate.compare import compare_runs

        print(f"\n{compare_runs(Path(other), folder).text()}")
    log.info("report in %s", folder / "report.html")
    announce(report=folder / "report.html")
    return 0


def compare_only(config: EvalConfig) -> int:
    from swift.evaluate.compare import compare_runs

    if len(config.evaluate.compare) != 2:
        raise UsageError(
            "takes two runs, or one beside a model to evaluate", where="--compare", fix="--compare RUN_A RUN_B"
        )
    comparison = compare_runs(*map(Path, config.evaluate.compare))
    print(comparison.text())
    log.debug(json.dumps(comparison.to_json()))
    return 0
