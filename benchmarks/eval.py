"""swift eval and lm-evaluation-harness' own `hf` model on the same files: CPU-seconds, decisions, log-probabilities.

    python benchmarks/eval.py --model DIR --data DIR --sets ARC_c --limit 300

`--model` is a plain transformers directory; `--data` holds llm-foundry's arc_challenge, arc_easy and piqa .jsonl,
hellaswag/*.jsonl and mmlu/{dev,test}/*.csv (with a header), in any sub-directories. Each side runs as a process of its
own, whose whole CPU time counts; the tasks of lm-eval's side are written out here, independently of swift's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SUBJECTS = ("anatomy", "high_school_biology", "philosophy")
METRICS = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]


def choice_task(name: str, file: Path, text: str, **more: Any) -> dict[str, Any]:
    kind = "csv" if file.suffix == ".csv" else "json"
    return {
        "task": name,
        "dataset_path": kind,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": METRICS,
        **more,
    }


def mmlu_tasks(data: Path, letters: bool) -> list[dict[str, Any]]:
    tasks = []
    for subject in SUBJECTS:
        test = next(data.glob(f"**/mmlu/**/{subject}_test.csv"))
        options = "".join(f"\n{letter}. {{{{choice{i}}}}}" for i, letter in enumerate("ABCD"))
        task = choice_task(f"mmlu_{subject}", test, "Question: {{question.strip()}}\nAnswer:", doc_to_target="answer")
        task["doc_to_choice"] = "{{[choice0|string, choice1|string, choice2|string, choice3|string]}}"
        if letters:
            spoken = subject.replace("_", " ")
            task |= {
                "doc_to_text": "{{question.strip()}}" + options + "\nAnswer:",
                "doc_to_choice": ["A", "B", "C", "D"],
                "description": f"The following are multiple choice questions (with answers) about {spoken}.\n\n",
                "num_fewshot": 5,
                "fewshot_split": "dev",
                "fewshot_config": {"sampler": "first_n"},
                "dataset_kwargs": {
                    "data_files": {"test": str(test), "dev": str(next(data.glob(f"**/mmlu/**/{subject}_dev.csv")))}
                },
            }
        tasks.append(task)
    return tasks


def hellaswag_task(data: Path) -> dict[str, Any]:
    from lm_eval.tasks.hellaswag.utils import process_docs

    file = next(path for path in data.rglob("*.jsonl") if "hellaswag" in path.name.lower())
    return choice_task("hellaswag", file, "{{query}}", process_docs=process_docs)


def tasks_of(name: str, data: Path) -> list[dict[str, Any]]:
    def foundry(stem: str) -> Path:
        return next(data.rglob(f"{stem}.jsonl"))

    if name.startswith("MMLU"):
        return mmlu_tasks(data, letters=name == "MMLU")
    if name == "HellaSwag":
        return [hellaswag_task(data)]
    files = {"ARC_c": "arc_challenge", "ARC_e": "arc_easy", "PIQA": "piqa"}
    text = "{{query}}Answer:" if name == "PIQA" else "{{query}}\nAnswer:"
    return [choice_task(name, foundry(files[name]), text)]


def by_hand(name: str, model: str, data: Path, limit: int | None, out: Path) -> None:
    """lm-eval's side, in this process."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    tasks = tasks_of(name, data)
    answerer = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=16)
    results = lm_eval.simple_evaluate(answerer, tasks=tasks, limit=limit, log_samples=True, bootstrap_iters=1)
    records = []
    for task in tasks:
        for sample in results["samples"][task["task"]]:
            logprobs = [float(response[0][0]) for response in sample["resps"]]
            records.append({"logprobs": logprobs, **{m: sample[m] for m in ("acc", "acc_norm") if m in sample}})
    out.write_text(json.dumps(records))


def swift_command(name: str, model: str, data: Path, limit: int | None, out: Path) -> list[str]:
    words = [sys.executable, "-m", "swift", "eval", "--model", model, "--local_dataset", str(data)]
    words += ["--eval_dataset", name, "--eval_output_dir", str(out), "--torch_dtype", "float32"]
    if name.startswith("MMLU"):
        words += ["--eval_dataset_args", json.dumps({name: {"subset_list": list(SUBJECTS)}})]
    return words + (["--eval_limit", str(limit)] if limit else [])


def cpu_seconds(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(name: str, own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    assert len(own) == len(theirs), (len(own), len(theirs))
    worst = max(
        abs(a - b) for x, y in zip(own, theirs, strict=True) for a, b in zip(x["logprobs"], y["logprobs"], strict=True)
    )
    metric = "acc" if name == "MMLU" else "acc_norm"
    same = sum(x["value"] == y[metric] for x, y in zip(own, theirs, strict=True))
    argmax = sum(_best(x) == _best(y) for x, y in zip(own, theirs, strict=True))
    score = 100 * sum(y[metric] for y in theirs) / len(theirs)
    decisions = f"same {metric} {same}/{len(own)}, same likeliest option {argmax}/{len(own)}"
    return f"{decisions}, log-probs within {worst:.1e}, {metric} {score:.2f} %"


def _best(record: dict[str, Any]) -> int:
    return record["logprobs"].index(max(record["logprobs"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["ARC_c"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--by-hand", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        by_hand(options.sets[0], options.model, options.data, options.limit, options.by_hand)
        return
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            own_cpu = cpu_seconds(swift_command(name, options.model, options.data, options.limit, place / "swift"))
            words = [sys.executable, __file__, "--model", options.model, "--data", str(options.data), "--sets", name]
            words += ["--limit", str(options.limit)] if options.limit else []
            theirs_cpu = cpu_seconds([*words, "--by-hand", str(place / "lm_eval.json")])
            samples = next((place / "swift").rglob(f"samples/{name}.jsonl")).read_text().splitlines()
            theirs = json.loads((place / "lm_eval.json").read_text())
        n = len(samples)
        print(
            f"{name}: n {n}; swift {own_cpu:.1f} CPU-s ({n / own_cpu:.2f} q/s), lm-eval hf {theirs_cpu:.1f} CPU-s "
            f"({n / theirs_cpu:.2f} q/s), ratio {theirs_cpu / own_cpu:.2f}; "
            + compare(name, [json.loads(line) for line in samples], theirs),
            flush=True,
        )


if __name__ == "__main__":
    main()
