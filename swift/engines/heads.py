"""`swift infer` with a model that classifies, embeds or ranks: rows, one text (--prompt), or lines of standard input.

Promises: texts are encoded as the training encoded them; the result file has a line for each row in the rows' order and
appears whole or not at all. Sampling options are errors here, nothing is sampled.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swift import runs
from swift.chat import RowDropped
from swift.config.commands import InferConfig
from swift.config.record import explain
from swift.engines import setup
from swift.engines.answers import remark
from swift.engines.judging import Judge, load_judge
from swift.engines.protocol import Text
from swift.engines.texts import shortened
from swift.errors import SwiftError, UsageError

# what says how text is written
GENERATING = ("generation", ("stream", "num_beams"))


def main(config: InferConfig, source: setup.Source) -> int:
    """Answer with classes, vectors or scores; 1 when a row could not be answered."""
    _check(config)
    rows = bool(config.data.dataset or config.data.val_dataset)
    if rows and config.infer.result_path is None:
        from swift.engines.infer import decide_result_path

        config = decide_result_path(config, source)
    if config.common.dry_run:
        print(explain(config))
        return 0
    found = _read(config) if rows else []
    answers = Answers(config, load_judge(config, source))
    if rows:
        return _answer_rows(config, answers, found)
    if config.infer.prompt is not None:
        print(json.dumps(answers.shown(answers.answer([_asked(config.infer.prompt)])[0]), ensure_ascii=False))
        return 0
    remark("one text a line; Ctrl-D ends")
    for line in sys.stdin:
        if line.strip():
            answer = answers.answer([_asked(line.rstrip("\n"))])[0]
            print(json.dumps(answers.shown(answer), ensure_ascii=False), flush=True)
    return 0


def _asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _check(config: InferConfig) -> None:
    task = config.head.task_type
    section, others = GENERATING
    for name, spec in config.specs().items():
        if config.given(name) and (spec.section == section or name in others):
            raise UsageError(f"says how text is written; --task_type {task} writes none", where=f"--{name}")
    if config.engine.infer_backend != "pt":
        fix = "--infer_backend pt"
        raise UsageError(f"only pt runs --task_type {task}", where="--infer_backend", fix=fix)
    if task == "reranker" and not (config.data.dataset or config.data.val_dataset):
        raise UsageError("a ranker needs a query and its documents", fix="--val_dataset FILE of query, positive rows")


def _read(config: InferConfig) -> list[Any]:
    from swift.data.load import load_rows

    loaded = load_rows(config.data, use_hf=config.model.use_hf, hub_token=config.model.hub_token, need_response=False)
    if loaded.report.dropped:
        remark(loaded.report.to_text())
    rows = list(loaded.val if len(loaded.val) else loaded.train)
    sample = config.infer.val_dataset_sample
    if sample is not None and sample < len(rows):
        seed = 42 if config.data.data_seed is None else config.data.data_seed
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), sample))]
    return rows


def _answer_rows(config: InferConfig, judge: Answers, rows: Sequence[Any]) -> int:
    path = Path(str(config.infer.result_path))
    answers = judge.answer(rows)
    lines, failed = [], 0
    for row, answer in zip(rows, answers, strict=True):
        record = {**row, **judge.shown(answer), "source": str(row.source)}
        failed += "error" in record
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    runs.ensure_writable_dir(path.parent)
    runs.write_text(path, "".join(lines))
    for line in judge.measures(rows, answers):
        remark(line)
    remark(f"answers in {path}" + (f"; {failed} of {len(rows)} rows failed" if failed else ""))
    return 1 if failed else 0


class Answers:
    """What the loaded model makes of rows: a list of floats for each text of a row, or the row's error."""

    def __init__(self, config: InferConfig, judge: Judge):
        self.head, self.limit, self.strategy = config.head, config.chat.max_length, config.chat.truncation_strategy
        self._judge = judge

    def answer(self, rows: Sequence[Any]) -> list[list[list[float]] | SwiftError]:
        """Probabilities or numbers of the classes, a vector, or the score of each document: one list for each text."""
        texts: list[Text] = []
        places: list[range | SwiftError] = []
        for row in rows:
            try:
                found = self._texts(row)
            except SwiftError as error:
                places.append(error)
                continue
            places.append(range(len(texts), len(texts) + len(found)))
            texts += found
        values = self._judge.pooler.all(texts)
        return [place if isinstance(place, SwiftError) else [values[i] for i in place] for place in places]

    def _texts(self, row: Any) -> list[Text]:
        if self.head.task_type != "reranker":
            return [self._cut(self._judge.texts.row(row))]
        from swift.data.heads import ranked

        documents = [*row.get("positive_messages", ()), *row.get("negative_messages", ())]
        if not documents:
            raise UsageError("no documents to rank", where=str(row.source), fix="columns positive and negative")
        return [self._cut(self._judge.texts.row(ranked(row, document))) for document in documents]

    def _cut(self, text: Text) -> Text:
        if self.limit is None or len(text.ids) <= self.limit:
            return text
        if self.strategy not in ("left", "right"):
            raise RowDropped("too_long", len(text.ids), self.limit)
        return shortened(text, self.limit, self.strategy)

    def shown(self, answer: list[list[float]] | SwiftError) -> dict[str, Any]:
        """The answer as columns of a result line."""
        if isinstance(answer, SwiftError):
            return {"response": None, "error": str(answer)}
        if self.head.task_type == "embedding":
            return {"embedding": answer[0]}
        if self.head.task_type == "reranker":
            return {"scores": [score for (score,) in answer]}
        values = answer[0]
        if self.head.problem_type == "regression":
            return {"response": values[0] if len(values) == 1 else values}
        if self.head.problem_type == "multi_label_classification":
            return {"response": [self._name(i) for i, p in enumerate(values) if p > 0.5], "probabilities": values}
        return {"response": self._name(max(range(len(values)), key=values.__getitem__)), "probabilities": values}

    def _name(self, number: int) -> str | int:
        return self.head.label_names[number] if self.head.label_names else number

    def measures(self, rows: Sequence[Any], answers: Sequence[Any]) -> list[str]:
        """How often the answers are those of the rows: accuracy, or the mean reciprocal rank of the first positive."""
        if self.head.task_type == "reranker":
            ranks = [_rank(row, answer) for row, answer in zip(rows, answers, strict=True) if isinstance(answer, list)]
            ranks = [rank for rank in ranks if rank is not None]
            mean = sum(1 / rank for rank in ranks) / len(ranks) if ranks else 0.0
            return [f"mean reciprocal rank {mean:.4f} over {len(ranks)} rows"] if ranks else []
        if self.head.task_type != "seq_cls" or self.head.problem_type == "regression":
            return []
        judged = [
            (row["label"], self.shown(answer)["response"])
            for row, answer in zip(rows, answers, strict=True)
            if "label" in row and isinstance(answer, list)
        ]
        if not judged:
            return []
        right = sum(_same(label, response) for label, response in judged)
        return [f"accuracy {right / len(judged):.4f} ({right} of {len(judged)} rows with a label)"]


def _same(label: Any, response: Any) -> bool:
    return sorted(map(str, label)) == sorted(map(str, response)) if isinstance(label, list) else label == response


def _rank(row: Any, answer: Sequence[Sequence[float]]) -> int | None:
    """The place of the best positive among all documents; None without negatives to tell it from."""
    count = len(row.get("positive_messages", ()))
    scores = [score for (score,) in answer]
    if not count or count == len(scores):
        return None
    return 1 + sum(score >= max(scores[:count]) for score in scores[count:])
