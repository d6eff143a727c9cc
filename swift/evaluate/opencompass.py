"""OpenCompass 0.5 over an OpenAI-style endpoint: its generation configurations, its prompts, its post-processing.

Writes a configuration file, and our copies of the data in OpenCompass' layouts where we have them. Reads
predictions/ and results/ of the run. Log-likelihood (ppl) configurations can't be asked of a server.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swift.errors import UsageError
from swift.evaluate.data import Documents, Wish
from swift.evaluate.external import Asked, missing_results, read_json
from swift.evaluate.results import BenchmarkResult
from swift.evaluate.store import question_key

# Benchmark -> (configuration, examples in its prompts), for those whose data we can write. Other names are looked up
# among OpenCompass' own NAME_gen.py.
KNOWN: dict[str, tuple[str, int]] = {
    "arc_c": ("ARC_c.ARC_c_gen_1e0de5", 0),
    "arc_e": ("ARC_e.ARC_e_gen_1e0de5", 0),
    "mmlu": ("mmlu.mmlu_gen_4d595a", 5),
    "cmmlu": ("cmmlu.cmmlu_gen_c13365", 5),
    "gsm8k": ("gsm8k.gsm8k_gen_1d7fe4", 4),
}
CONFIGS = "opencompass.configs.datasets"
SEPARATOR = "@"
MOST_TOKENS = 1 << 20  # the server says what is too long
SCORES = ("accuracy", "score", "exact_match", "pass@1", "f1")


class OpenCompass:
    name, environment = "OpenCompass", "opencompass"

    def check(self, python: Path, sets: Sequence[str]) -> None:
        self._folder = _configs(python)
        for name in sets:
            self._module(name)

    def _module(self, name: str) -> str:
        """The configuration of a benchmark, as a module below CONFIGS."""
        if name.lower() in KNOWN:
            return KNOWN[name.lower()][0]
        found = {path.stem.removesuffix("_gen").lower(): path for path in sorted(self._folder.glob("*/*_gen.py"))}
        exact = {path.stem.lower(): path for path in sorted(self._folder.glob("*/*.py"))}
        path = found.get(name.lower()) or exact.get(name.lower())
        if path is None:
            near = difflib.get_close_matches(name.lower(), found, n=3)
            fix = f"did you mean {' or '.join(near)}?" if near else f"a name below {self._folder}"
            raise UsageError("OpenCompass has no such benchmark", where=f"--eval_dataset {name}", fix=fix)
        return f"{path.parent.name}.{path.stem}"

    def wish(self, name: str) -> Wish | None:
        return Wish(shots=KNOWN[name.lower()][1]) if name.lower() in KNOWN else None

    def command(self, python: Path, asked: Asked) -> tuple[list[str], dict[str, str]]:
        place = asked.folder / self.environment
        place.mkdir(exist_ok=True)
        _byte_tokenizer(place / "tokenizer")
        paths = {name: _write(name, docs, place / "data" / name) for name, docs in asked.documents.items()}
        modules = {name: self._module(name) for name in asked.sets}
        config = place / "swift_eval.py"
        config.write_text(config_text(asked, modules, paths, place / "tokenizer"), encoding="utf-8")
        words = [str(python), "-m", "opencompass.cli.main", str(config), "--debug", "-w", str(place / "out")]
        return words, {"TOKENIZERS_PARALLELISM": "false"}

    def read(self, asked: Asked, seconds: float) -> tuple[list[BenchmarkResult], dict[str, list[dict[str, Any]]]]:
        results, samples = [], {}
        for name in asked.sets:
            parts, samples[name] = self._parts(asked, name)
            n = sum(part["n"] for part in parts.values())
            score = sum(part["n"] * part["score"] for part in parts.values()) / n
            known = KNOWN.get(name.lower())
            results.append(
                BenchmarkResult(
                    benchmark=name,
                    backend="OpenCompass",
                    harness=f"opencompass {_version(asked)}, {self._module(name).rpartition('.')[2]}",
                    metric=next(iter(parts.values()))["metric"],
                    score=score,
                    stderr=math.sqrt(score * (1 - score) / (n - 1)) if n > 1 else None,
                    n=n,
                    split=asked.documents[name].split if name in asked.documents else "OpenCompass' own",
                    mode="generation",
                    prompts="OpenCompass",
                    shots=known[1] if known else None,
                    partial=asked.documents[name].partial if name in asked.documents else None,
                    seconds=seconds / len(asked.sets),
                    metrics={next(iter(parts.values()))["metric"]: {"score": score, "stderr": None}},
                    subjects={k: {"n": v["n"], "score": v["score"], "stderr": None} for k, v in parts.items()}
                    if len(parts) > 1
                    else {},
                )
            )
        return results, samples

    def _parts(self, asked: Asked, name: str) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """({n, score, metric} by OpenCompass' data set, one record a question)."""
        out = asked.folder / self.environment / "out"
        parts, samples = {}, []
        for path in sorted(out.glob(f"*/results/*/{name}{SEPARATOR}*.json")):
            abbr = path.stem.partition(SEPARATOR)[2]
            result = read_json(path)
            metric = next((m for m in SCORES if isinstance(result.get(m), (int, float))), None)
            if metric is None:
                raise missing_results(self, asked, f"{name} ({abbr}: {json.dumps(result)[:200]})")
            made = read_json(path.parents[2] / "predictions" / path.parent.name / path.name)
            parts[abbr] = {"n": len(made), "score": result[metric] / 100, "metric": metric}
            samples += [_record(abbr, i, item, result.get("details")) for i, item in enumerate(made.values())]
        if not parts:
            raise missing_results(self, asked, name)
        return parts, samples


def _record(abbr: str, number: int, item: Mapping[str, Any], details: Any) -> dict[str, Any]:
    prompt = item.get("origin_prompt")
    record = {"subject": abbr, "id": number, "hash": question_key("prompt", prompt), "prompt": prompt}
    record |= {"output": item.get("prediction"), "target": item.get("gold")}
    detail = details.get(str(number)) if isinstance(details, Mapping) else None
    if isinstance(detail, Mapping) and isinstance(detail.get("correct"), bool):
        record["value"] = float(detail["correct"])
    return record


def config_text(asked: Asked, modules: Mapping[str, str], paths: Mapping[str, Path], tokenizer: Path) -> str:
    """The configuration file (an mmengine Python config)."""
    settings = dict(asked.generation)
    model: dict[str, Any] = {
        "abbr": "model",
        "path": asked.model,
        "key": asked.key,
        "openai_api_base": asked.url,
        "tokenizer_path": str(tokenizer),
        "meta_template": {
            "round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}]
        },
        "query_per_second": asked.parallel,
        "batch_size": asked.parallel,
        "max_workers": asked.parallel,
        "max_seq_len": MOST_TOKENS,
        "max_out_len": settings.pop("max_gen_toks", 1024),
        "temperature": settings.pop("temperature", 0.0),
        "retry": 3,
    }
    if settings:
        model["openai_extra_kwargs"] = settings
    model |= dict(asked.extra)
    lines = [
        "from mmengine.config import read_base",
        "from opencompass.models import OpenAISDK",
        "",
        "with read_base():",
    ]
    variables = {name: f"set_{i}" for i, name in enumerate(modules)}
    for name, module in modules.items():
        lines.append(f"    from {CONFIGS}.{module} import {_variable(module)} as {variables[name]}")
    lines += ["", "datasets = []"]
    for name, variable in variables.items():
        change: dict[str, Any] = {"path": str(paths[name])} if name in paths else {}
        subjects = (
            list(asked.documents[name].subjects) if name in paths and "" not in asked.documents[name].subjects else None
        )
        chosen = f" if _one['name'] in {subjects!r}" if subjects else ""
        reader = f"dict(_one['reader_cfg'], test_range='[:{asked.limit}]')" if asked.limit else "_one['reader_cfg']"
        new = f"dict(_one, abbr={name + SEPARATOR!r} + _one['abbr'], reader_cfg={reader}, **{change!r})"
        lines.append(f"datasets += [{new} for _one in {variable}{chosen}]")
    return "\n".join([*lines, f"models = [dict(type=OpenAISDK, **{model!r})]", ""])


def _variable(module: str) -> str:
    """The name that a configuration gives its list of data sets."""
    return f"{module.partition('.')[0]}_datasets"


def _configs(python: Path) -> Path:
    """The directory of OpenCompass' data set configurations, without importing it."""
    code = "import importlib.util as u; print(u.find_spec('opencompass').submodule_search_locations[0])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{python} has no OpenCompass", where="--eval_python", fix="swift env create opencompass")
    return Path(done.stdout.strip()) / "configs" / "datasets"


def _version(asked: Asked) -> str:
    from swift.environments import find

    found = find("opencompass")
    packages = found.record.get("packages", {}) if found else {}
    return str(packages.get("opencompass", "(version unknown)"))


def _byte_tokenizer(folder: Path) -> None:
    """A tokenizer that counts bytes: OpenCompass wants one to measure lengths with, and may not download any."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MOST_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")


def _write(name: str, documents: Documents, place: Path) -> Path:
    """Our documents in OpenCompass' layout of that benchmark; the path that its configuration is given."""
    place.mkdir(parents=True, exist_ok=True)
    if name.lower().startswith("arc"):
        rows = [_arc_row(doc) for docs in documents.subjects.values() for doc in docs]
        return _write_jsonl(place / f"{name}.jsonl", rows)
    if name.lower() == "gsm8k":
        _write_jsonl(place / "test.jsonl", next(iter(documents.subjects.values())))
        _write_jsonl(place / "train.jsonl", next(iter(documents.fewshot.values()), documents.subjects[""]))
        return place
    for split, subjects in (("test", documents.subjects), ("dev", documents.fewshot)):
        (place / split).mkdir(exist_ok=True)
        for subject, docs in subjects.items():
            _write_csv(name.lower(), place / split, subject, split, docs)
    return place


def _arc_row(doc: Mapping[str, Any]) -> dict[str, Any]:
    labels = doc["letters"]
    options = [{"text": text, "label": label} for text, label in zip(doc["choices"], labels, strict=True)]
    return {"question": {"stem": doc["question"], "choices": options}, "answerKey": labels[doc["gold"]]}


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _write_csv(name: str, folder: Path, subject: str, split: str, docs: Sequence[Mapping[str, Any]]) -> None:
    head = ["", "Question", "A", "B", "C", "D", "Answer"] if name == "cmmlu" else None
    path = folder / (f"{subject}.csv" if head else f"{subject}_{split}.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if head:
            writer.writerow(head)
        for i, doc in enumerate(docs):
            row = [doc["question"], *doc["choices"], doc["letters"][doc["gold"]]]
            writer.writerow([i, *row] if head else row)
