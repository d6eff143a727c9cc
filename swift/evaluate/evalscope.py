"""EvalScope 1.x over an OpenAI-style endpoint: its chat prompts and extraction rules, all by generation.

Writes our copies of the data in the layout that its loader wants (a directory with a README that names the subsets)
where we have them; reads reviews/ of the run, where every answer stands with its score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swift.environments import find
from swift.errors import UsageError
from swift.evaluate.data import Documents, Wish
from swift.evaluate.external import Asked, missing_results
from swift.evaluate.results import BenchmarkResult
from swift.evaluate.store import question_key
from swift.runs import read_log

# Benchmark -> (EvalScope's name, subset or None for all, examples in the prompt), for those whose data we can write.
KNOWN: dict[str, tuple[str, str | None, int]] = {
    "arc_c": ("arc", "ARC-Challenge", 0),
    "arc_e": ("arc", "ARC-Easy", 0),
    "mmlu": ("mmlu", None, 5),
    "gsm8k": ("gsm8k", "main", 4),
}
SETTINGS = {"max_gen_toks": "max_tokens", "until": "stop_seqs"}


class EvalScope:
    name, environment = "EvalScope", "evalscope"

    def check(self, python: Path, sets: Sequence[str]) -> None:
        names = [KNOWN[name.lower()][0] for name in sets if name.lower() in KNOWN]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageError(
                f"EvalScope counts them as one benchmark, {twice}",
                where=f"--eval_dataset {' '.join(sets)}",
                fix="name one",
            )

    def wish(self, name: str) -> Wish | None:
        return Wish(shots=KNOWN[name.lower()][2]) if name.lower() in KNOWN else None

    def command(self, python: Path, asked: Asked) -> tuple[list[str], dict[str, str]]:
        place = asked.folder / self.environment
        arguments: dict[str, dict[str, Any]] = {}
        for name in asked.sets:
            theirs, subset, _ = KNOWN.get(name.lower(), (name.lower(), None, 0))
            arguments[theirs] = dict(asked.arguments.get(name, {}))
            if subset and theirs == "arc":
                arguments[theirs]["subset_list"] = [subset]
            if name in asked.documents:
                folder = place / "data" / theirs
                write_layout(theirs, subset, asked.documents[name], folder)
                arguments[theirs]["local_path"] = str(folder)
        generation = {SETTINGS.get(key, key): value for key, value in asked.generation.items()}
        words = [str(python), "-m", "evalscope.cli.cli", "eval", "--model", asked.model, "--api-url", asked.url]
        words += ["--api-key", asked.key, "--eval-type", "openai_api", "--datasets", *arguments]
        words += ["--dataset-args", json.dumps(arguments), "--eval-batch-size", str(asked.parallel)]
        words += ["--work-dir", str(place / "out")]
        words += ["--limit", str(asked.limit)] if asked.limit else []
        words += ["--generation-config", json.dumps({"temperature": 0.0, **generation})]
        for key, value in asked.extra.items():
            words += [f"--{key.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
        return words, {}

    def read(self, asked: Asked, seconds: float) -> tuple[list[BenchmarkResult], dict[str, list[dict[str, Any]]]]:
        found = find("evalscope")
        version = found.record.get("packages", {}).get("evalscope", "") if found else ""
        results, samples = [], {}
        for name in asked.sets:
            theirs, _, shots = KNOWN.get(name.lower(), (name.lower(), None, None))
            metric, samples[name] = self._samples(asked, name, theirs)
            values = [sample["value"] for sample in samples[name]]
            documents = asked.documents.get(name)
            score, stderr = mean(values)
            results.append(
                BenchmarkResult(
                    benchmark=name,
                    backend="EvalScope",
                    harness=f"evalscope {version}".strip(),
                    metric=metric,
                    score=score,
                    stderr=stderr,
                    n=len(values),
                    split=documents.split if documents else "EvalScope's own",
                    mode="generation",
                    prompts="EvalScope",
                    shots=shots,
                    unparsed=sum(sample["unparsed"] for sample in samples[name]),
                    partial=documents.partial if documents else None,
                    tokens=_tokens(samples[name]),
                    seconds=seconds / len(asked.sets),
                    metrics={metric: {"score": score, "stderr": stderr}},
                    subjects=_subjects(samples[name]),
                )
            )
        return results, samples

    def _samples(self, asked: Asked, name: str, theirs: str) -> tuple[str, list[dict[str, Any]]]:
        """(the metric's name, one record a question) of EvalScope's reviews."""
        out = asked.folder / self.environment / "out"
        metric, records = "", []
        for path in sorted(out.glob(f"*/reviews/*/{theirs}_*.jsonl")):
            for review in read_log(path):
                scored = review["sample_score"]["score"]
                metric = scored["main_score_name"]
                records.append(_record(path.stem.removeprefix(f"{theirs}_"), review, scored, metric))
        if not records:
            raise missing_results(self, asked, name)
        return metric, records


def _record(subject: str, review: Mapping[str, Any], scored: Mapping[str, Any], metric: str) -> dict[str, Any]:
    said = review["messages"]
    prompt = [{"role": message["role"], "content": message["content"]} for message in said[:-1]]
    usage = said[-1].get("perf_metrics") or {}
    return {
        "subject": subject,
        "id": review["index"],
        "hash": question_key("prompt", prompt),
        "prompt": prompt,
        "output": said[-1]["content"],
        "decision": scored.get("extracted_prediction"),
        "target": review["target"],
        "unparsed": int(not scored.get("extracted_prediction")),
        "value": float(scored["value"][metric]),
        "tokens": [usage.get("input_tokens") or 0, usage.get("output_tokens") or 0],
    }


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, its standard error from the sample's variance; None for a single value)."""
    center = sum(values) / len(values)
    if len(values) < 2:
        return center, None
    variance = sum((value - center) ** 2 for value in values) / (len(values) - 1)
    return center, math.sqrt(variance / len(values))


def _tokens(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"prompt": sum(s["tokens"][0] for s in samples), "generated": sum(s["tokens"][1] for s in samples)}


def _subjects(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_subject: dict[str, list[float]] = {}
    for sample in samples:
        by_subject.setdefault(sample["subject"], []).append(sample["value"])
    if len(by_subject) < 2:
        return {}
    return {name: {"n": len(v), "score": mean(v)[0], "stderr": mean(v)[1]} for name, v in by_subject.items()}


def write_layout(theirs: str, subset: str | None, documents: Documents, folder: Path) -> None:
    """Rows in Hugging Face's columns, and a README whose head names subsets, splits and files."""
    splits = {"test": documents.subjects, "dev" if theirs == "mmlu" else "train": documents.fewshot}
    name = "all" if theirs == "mmlu" else str(subset)
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, subjects in splits.items():
        rows = [_row(theirs, subject, doc) for subject, docs in subjects.items() for doc in docs]
        if rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
            lines += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def _row(theirs: str, subject: str, doc: Mapping[str, Any]) -> Mapping[str, Any]:
    if theirs == "arc":
        choices = {"text": doc["choices"], "label": doc["letters"]}
        return {"question": doc["question"], "choices": choices, "answerKey": doc["letters"][doc["gold"]]}
    if theirs == "mmlu":
        return {"question": doc["question"], "subject": subject, "choices": doc["choices"], "answer": doc["gold"]}
    return doc
