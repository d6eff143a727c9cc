"""EleutherAI's lm-evaluation-harness with our models: its tasks build the prompts, its metrics make the scores.

The only file that imports lm-eval as a whole. A benchmark becomes one of its tasks per subject, over documents that
were read here; the model it talks to is `Harnessed`, which asks an `Answerer` what is not on disk yet.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from tqdm import tqdm

from swift.errors import DataError, UsageError
from swift.evaluate.answering import Answerer, Ask
from swift.evaluate.benchmarks import Benchmark
from swift.evaluate.data import Documents
from swift.evaluate.judges import JUDGES, flat_mean
from swift.evaluate.lettered import lettered
from swift.evaluate.plans import GENERATION, LIKELIHOOD, Plan
from swift.evaluate.store import Answers, question_key
from swift.evaluate.thinking import after

FEWSHOT_SEED = 1234  # lm-eval's own default: the same examples are drawn
INVALID = "[invalid]"  # what lm-eval's filters give where they find nothing


@dataclass(frozen=True)
class Measured:
    """`metrics`: "metric,filter" -> (value, standard error or None); `subjects` the same for each subject, with n."""

    metrics: dict[str, tuple[float, float | None]]
    subjects: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    n: int
    unparsed: int | None


class Harnessed(LM):
    """lm-eval's view of an `Answerer`. Answers that `answers` has are not asked again."""

    def __init__(self, answerer: Answerer, answers: Answers, plan: Plan, title: str):
        super().__init__()
        self._answerer, self._answers, self._plan, self._title = answerer, answers, plan, title
        self._terminal = sys.stderr

    @property
    def tokenizer_name(self) -> str:
        return self._answerer.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self._answerer.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._answerer.chat_prompt(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for context, continuation in (request.args for request in requests)]
        keys = [question_key("log-likelihood", *pair) for pair in pairs]
        missing = list({keys[i]: i for i in self._answers.missing(keys) if keys[i] not in self._answers.found}.values())
        for index, score in self._watched(self._answerer.score([pairs[i] for i in missing]), len(missing)):
            self._answers.add(keys[missing[index]], score)
        return [(value, bool(greedy)) for value, greedy in (self._answers.found[key][0] for key in keys)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise UsageError("no benchmark here measures the likelihood of whole texts")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asks = [self._ask(*request.args) for request in requests]
        keys = [question_key("generation", repr(ask)) for ask in asks]
        missing = self._answers.missing(keys)
        for index, made in self._watched(self._answerer.generate([asks[i] for i in missing]), len(missing)):
            self._answers.add(keys[missing[index]], [made.text, made.finish_reason])
        return [after(text, self._plan.remove_until) for text, _ in self._answers.collect(keys)]

    def _ask(self, prompt: str, settings: Mapping[str, Any]) -> Ask:
        values = {**settings, **self._plan.generation}
        until = values.get("until") or ()
        return Ask(
            prompt=prompt,
            chat=self._plan.chat,
            until=(until,) if isinstance(until, str) else tuple(until),
            most=int(values.get("max_gen_toks", 256)),
            **{
                name: values[name]
                for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
                if name in values
            },
        )

    def _watched(self, answers: Iterator[tuple[int, Any]], count: int) -> Iterator[tuple[int, Any]]:
        """Show progress, and keep what the answers cost, also when one of them fails."""
        began = time.monotonic()
        bar = tqdm(total=count, desc=self._title, file=self._terminal, disable=not self._terminal.isatty(), leave=False)
        try:
            for answer in answers:
                bar.update()
                yield answer
        finally:
            bar.close()
            self._answers.spent(time.monotonic() - began, **self._answerer.spent())


def version() -> str:
    return str(lm_eval.__version__)


def measure(
    benchmark: Benchmark, documents: Documents, answerer: Answerer, plan: Plan, answers: Answers, title: str
) -> Measured:
    """Ask every document and score the answers."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = Harnessed(answerer, answers, plan, title)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        tasks = {subject: _task(benchmark, documents, plan, subject) for subject in documents.subjects}
        results = evaluator.evaluate(
            model,
            {_task_name(benchmark, subject): task for subject, task in tasks.items()},
            bootstrap_iters=1,  # standard errors in closed form; none is bootstrapped here
            apply_chat_template=plan.chat,
            fewshot_as_multiturn=plan.chat,
            system_instruction=plan.system,
            confirm_run_unsafe_code=True,  # our own sandbox runs it, and the caller has asked for it
        )
    return _collect(benchmark, documents, plan, tasks, results)


def _task_name(benchmark: Benchmark, subject: str) -> str:
    return f"{benchmark.name}:{subject}" if subject else benchmark.name


def task_config(benchmark: Benchmark, plan: Plan, subject: str) -> dict[str, Any]:
    """The configuration of a subject's task, without its data."""
    if plan.mode == GENERATION and not benchmark.generates:
        config: dict[str, Any] = {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "letter",
            "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 64},
            "metric_list": [_mean("exact_match")],
            "process_results": JUDGES["letter"],
        }
    else:
        config = {**benchmark.lm_eval, "metric_list": [dict(metric) for metric in benchmark.lm_eval["metric_list"]]}
        if benchmark.judge:
            config["process_results"] = JUDGES[benchmark.judge]
    if "process_results" in config and config["output_type"] == "generate_until":
        config["metric_list"].append(_mean("unparsed"))
    for metric in config["metric_list"]:
        if metric["aggregation"] == "flat_mean":
            metric["aggregation"] = flat_mean
    config["num_fewshot"] = plan.shots
    if benchmark.description and plan.mode == LIKELIHOOD:
        config["description"] = benchmark.describe(subject)
    return config


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": metric != "unparsed"}


def _task(benchmark: Benchmark, documents: Documents, plan: Plan, subject: str) -> ConfigurableTask:
    config = task_config(benchmark, plan, subject)
    config["task"] = _task_name(benchmark, subject)
    docs = documents.subjects[subject]
    if plan.mode == GENERATION and not benchmark.generates:
        docs = [lettered(doc, benchmark) for doc in docs]
    splits = {"test": Dataset.from_list(docs)}
    config["test_split"] = "test"
    if plan.shots and benchmark.examples:
        config.update(_shipped_examples(benchmark, subject))
    elif plan.shots:
        splits["examples"] = Dataset.from_list(_examples(benchmark, documents, plan, subject))
        config["fewshot_split"] = "examples"
    config["custom_dataset"] = lambda **_: splits
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _examples(benchmark: Benchmark, documents: Documents, plan: Plan, subject: str) -> list[dict[str, Any]]:
    examples = documents.fewshot.get(subject) or documents.fewshot.get("") or []
    if len(examples) < plan.shots:
        of = f" of {subject}" if subject else ""
        raise DataError(
            f"{plan.shots} examples{of} are needed in the prompt and there are {len(examples)}",
            where=str(documents.files[0].parent),
            fix=f"""add their split, or --eval_dataset_args '{{"{benchmark.name}": {{"few_shot_num": 0}}}}'""",
        )
    return examples


def _shipped_examples(benchmark: Benchmark, subject: str) -> dict[str, Any]:
    """The worked examples that lm-eval carries for a subject."""
    import yaml

    path = Path(lm_eval.__file__).parent / "tasks" / str(benchmark.examples) / f"{subject}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"fewshot_config": values["fewshot_config"], "description": values["description"]}


def _collect(
    benchmark: Benchmark, documents: Documents, plan: Plan, tasks: Mapping[str, ConfigurableTask], results: Any
) -> Measured:
    names = {subject: _task_name(benchmark, subject) for subject in tasks}
    subjects: dict[str, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    primary = primary_metric(benchmark, plan)
    for subject, name in names.items():
        metrics = _metrics(results["results"][name])
        logged = [s for s in results["samples"][name] if s["filter"] == primary.partition(",")[2]]
        samples += [_record(subject, sample, tasks[subject], primary, plan) for sample in logged]
        subjects[subject] = {"n": len(logged), "metrics": metrics}
    unparsed = None
    if plan.mode == GENERATION:
        unparsed = sum(sample["unparsed"] for sample in samples)
    return Measured(_pooled(subjects), subjects, samples, len(samples), unparsed)


def primary_metric(benchmark: Benchmark, plan: Plan) -> str:
    """ "metric,filter" of what is reported first."""
    if plan.mode == GENERATION and not benchmark.generates:
        return "exact_match,none"
    return benchmark.primary if "," in benchmark.primary else f"{benchmark.primary},none"


def _metrics(values: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    found = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and metric != "unparsed":
            stderr = values.get(f"{metric}_stderr,{chosen}")
            found[key] = (float(value), float(stderr) if isinstance(stderr, (int, float)) else None)
    return found


def _pooled(subjects: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float | None]]:
    """All subjects together, weighted by size, as lm-eval's groups are."""
    parts = list(subjects.values())
    if len(parts) == 1:
        return dict(parts[0]["metrics"])
    sizes = [part["n"] for part in parts]
    pooled = {}
    for key in parts[0]["metrics"]:
        values = [part["metrics"][key] for part in parts]
        stderrs = [stderr for _, stderr in values if stderr is not None]
        stderr = (
            pooled_sample_stderr(stderrs, sizes) if len(stderrs) == len(parts) and sum(sizes) > len(sizes) else None
        )
        pooled[key] = (float(aggregate_subtask_metrics([value for value, _ in values], sizes)), stderr)
    return pooled


def _record(
    subject: str, sample: Mapping[str, Any], task: ConfigurableTask, primary: str, plan: Plan
) -> dict[str, Any]:
    metric = primary.partition(",")[0]
    record: dict[str, Any] = {"subject": subject, "id": sample["doc_id"], "hash": sample["doc_hash"]}
    arguments = sample["arguments"]
    if plan.mode == LIKELIHOOD:
        choices = task.doc_to_choice(sample["doc"])
        logprobs = [float(response[0][0]) for response in sample["resps"]]
        record["prompt"] = [args[0] for args in arguments] if task.multiple_input else arguments[0][0]
        record["options"] = choices
        record["logprobs"] = [round(value, 5) for value in logprobs]
        weights = [len(choice) if metric == "acc_norm" else 1 for choice in choices]
        scaled = [value / weight for value, weight in zip(logprobs, weights, strict=True)]
        record["decision"] = scaled.index(max(scaled))
        record["target"] = sample["doc"].get("gold", sample["target"])
    else:
        record["prompt"] = arguments[0][0]
        record["output"] = sample["resps"][0][0]
        decision = sample["filtered_resps"][0]
        record["decision"] = decision if isinstance(decision, str) else str(decision)
        record["target"] = sample["target"]
        record["unparsed"] = int(sample.get("unparsed", decision == INVALID))
    record["value"] = float(sample[metric])
    return record
