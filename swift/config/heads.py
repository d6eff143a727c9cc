"""The section that says what a model is trained for: to write text (the default), to classify, to embed or to rank.

`HEADED` are the tasks whose model ends in a head of its own in place of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option

HEADED = ("seq_cls", "reranker")
LOSSES = {
    "embedding": ("infonce", "cosine_similarity"),
    "reranker": ("pointwise_reranker", "listwise_reranker"),
}
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True)
class HeadOptions:
    task_type: str = option("causal_lm", choices=("causal_lm", "seq_cls", "embedding", "reranker"))
    num_labels: int | None = option(low=1)
    problem_type: str | None = option(choices=PROBLEMS)
    label_names: tuple[str, ...] = option(())
    loss_type: str | None = option(choices=sum(LOSSES.values(), ()))
    infonce_temperature: float = option(0.1, low=1e-4)
