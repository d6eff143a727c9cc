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
from swift.errors import SwiftError, UsageError

TOKENS_A_BATCH = 4096
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
    judge = Judge(config, source)
    if rows:
        return _answer_rows(config, judge, found)
    if config.infer.prompt is not None:
        print(json.dumps(judge.shown(judge.answer([_asked(config.infer.prompt)])[0]), ensure_ascii=False))
        return 0
    remark("one text a line; Ctrl-D ends")
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(judge.shown(judge.answer([_asked(line.rstrip("\n"))])[0]), ensure_ascii=False), flush=True)
    return 0


def _asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _check(config: InferConfig) -> None:
    task = config.head.task_type
    section, others = GENERATING
    for name, spec in config.specs().items():
        if config.given(name) and (spec.section == section or name in others):
            raise UsageError(f"says how text is written; --task_type {task} writes none", where=f"--{name}")
    if config.infer.infer_backend != "pt":
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


def _answer_rows(config: InferConfig, judge: Judge, rows: Sequence[Any]) -> int:
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


class Judge:
    """The loaded model and what it makes of rows: a list of floats for each text of a row, or the row's error."""

    def __init__(self, config: InferConfig, source: setup.Source):
        import torch

        self.head, self.limit, self.strategy = config.head, config.chat.max_length, config.chat.truncation_strategy
        self.torch = torch
        self.model, self.tokenizer, self.encoder = _load(config, source)
        self.device = next(self.model.parameters()).device

    def answer(self, rows: Sequence[Any]) -> list[list[list[float]] | SwiftError]:
        """Probabilities or numbers of the classes, a vector, or the score of each document: one list for each text."""
        texts: list[list[int]] = []
        places: list[range | SwiftError] = []
        for row in rows:
            try:
                ids = [self._ids(text) for text in self._texts(row)]
            except SwiftError as error:
                places.append(error)
                continue
            places.append(range(len(texts), len(texts) + len(ids)))
            texts += ids
        values = self._values(texts)
        return [place if isinstance(place, SwiftError) else [values[i] for i in place] for place in places]

    def _texts(self, row: Any) -> list[Any]:
        if self.head.task_type != "reranker":
            return [row]
        from swift.data.heads import ranked

        documents = [*row.get("positive_messages", ()), *row.get("negative_messages", ())]
        if not documents:
            raise UsageError("no documents to rank", where=str(row.source), fix="columns positive and negative")
        return [ranked(row, document) for document in documents]

    def _ids(self, row: Any) -> list[int]:
        ids = self.encoder.read_only(row)
        if self.limit is None or len(ids) <= self.limit:
            return ids
        if self.strategy not in ("left", "right"):
            raise RowDropped("too_long", len(ids), self.limit)
        return ids[: self.limit] if self.strategy == "right" else ids[-self.limit :]

    def _values(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """Texts of like length share a batch, right-padded."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[list[float]] = [[]] * len(texts)
        start = 0
        while start < len(order):
            size = 1
            while start + size < len(order) and (size + 1) * len(texts[order[start + size]]) <= TOKENS_A_BATCH:
                size += 1
            chosen = order[start : start + size]
            for i, values in zip(chosen, self._batch([texts[i] for i in chosen]), strict=True):
                found[i] = values
            start += size
        return found

    def _batch(self, texts: Sequence[list[int]]) -> list[list[float]]:
        torch = self.torch
        width = max(map(len, texts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([one + [pad] * (width - len(one)) for one in texts], device=self.device)
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in texts], device=self.device)
        with torch.inference_mode():
            if self.head.task_type == "embedding":
                from swift.models.embed import last_hidden

                return last_hidden(self.model, ids, mask).tolist()
            logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
            if self.head.task_type == "reranker" or self.head.problem_type == "multi_label_classification":
                return logits.sigmoid().tolist()
            return (logits if self.head.problem_type == "regression" else logits.softmax(dim=-1)).tolist()

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


def _load(config: InferConfig, source: setup.Source) -> tuple[Any, Any, Any]:
    """(model with its adapters, tokenizer, encoder of whole conversations)"""
    from swift.data.prepare import make_encoder, use_template
    from swift.models.adapters import load_adapters
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.heads import head_of, with_head
    from swift.models.load import load_model, load_tokenizer
    from swift.models.plan import plan_loading

    plan = plan_loading(config.model, config.quantization, source.files, pick_device(), training=False)
    directory = as_directory(source.files.path)
    tokenizer = load_tokenizer(
        directory, trust_remote_code=plan.trust_remote_code, new_special_tokens=plan.new_special_tokens
    )
    config, template = use_template(config, source.model, tokenizer)
    encoder = make_encoder(config.chat, tokenizer, template, source.model.directory)
    for line in plan.lines():
        remark(line)
    model = load_model(directory, with_head(plan, head_of(config.head, fresh=bool(source.adapters))))
    if source.adapters:
        model = load_adapters(model, source.adapters)
    return model.eval(), tokenizer, encoder
