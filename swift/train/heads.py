"""Training models that classify, embed or rank: what is computed of a batch, and a trainer that counts rows in place of
tokens.

Promises: the loss of a step is the mean over all items of its batches (rows of a classifier, positives of infonce,
pairs of a ranker); for classifiers it is the loss of transformers' own class. infonce (van den Oord et al. 2018,
arXiv:1807.03748) sets each query's positive against every other text of its batch; batches of accumulated gradients and
of other processes stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from swift.config.commands import SftConfig
from swift.data.heads import NEGATIVE, POSITIVE, QUERY
from swift.train.losses import LossParts
from swift.train.trainer import SftTrainer

Objective = Callable[[torch.nn.Module, dict[str, torch.Tensor]], LossParts]


def objective_of(config: SftConfig) -> Objective | None:
    """What the options train for; None for models that write text."""
    head = config.head
    if head.task_type == "seq_cls":
        return partial(classified, problem=head.problem_type, smoothing=config.training.label_smoothing_factor)
    if head.task_type == "embedding":
        if head.loss_type == "cosine_similarity":
            return similarity
        return partial(infonce, temperature=head.infonce_temperature)
    if head.task_type == "reranker":
        return listwise if head.loss_type == "listwise_reranker" else pointwise
    return None


def classified(model, inputs: dict[str, torch.Tensor], *, problem: str | None, smoothing: float = 0.0) -> LossParts:
    """Cross entropy, binary cross entropy or squared error of the head's outputs, as transformers'
    ForSequenceClassification computes them; the sum over the rows of their means over the outputs."""
    logits, targets = scores(model, inputs), inputs["targets"]
    rows = torch.tensor(len(logits), device=logits.device)
    if problem == "regression":
        return _parts((logits - targets).square().mean(dim=1).sum(), rows)
    if problem == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1).sum()
        return _parts(total, rows, ((logits > 0) == (targets > 0.5)).all(dim=1))
    total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return _parts(total, rows, logits.argmax(dim=1) == targets)


def pointwise(model, inputs: dict[str, torch.Tensor]) -> LossParts:
    """Each document by itself: binary cross entropy of its score with whether it belongs to the query."""
    logits = scores(model, inputs).squeeze(1)
    wanted = (inputs["roles"] == POSITIVE).float()
    total = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return _parts(total, torch.tensor(len(logits), device=logits.device), (logits > 0) == (wanted > 0.5))


def listwise(model, inputs: dict[str, torch.Tensor]) -> LossParts:
    """Each positive against the negatives of its row: cross entropy of their scores."""
    logits = scores(model, inputs).squeeze(1)
    row_of, negative = inputs["row_of"], inputs["roles"] == NEGATIVE
    positives = (~negative).nonzero().squeeze(1)
    rivals = negative & (row_of == row_of[positives, None])
    rivals[torch.arange(len(positives)), positives] = True
    return _against(logits.expand(len(positives), -1), rivals, positives)


def infonce(model, inputs: dict[str, torch.Tensor], *, temperature: float) -> LossParts:
    """Each positive against all texts of the batch but queries and the row's other positives."""
    vectors = embeddings(model, inputs)
    roles, row_of = inputs["roles"], inputs["row_of"]
    queries = vectors[roles == QUERY]
    positives = (roles == POSITIVE).nonzero().squeeze(1)
    similarities = queries[row_of[positives]] @ vectors.T / temperature
    own = (roles == POSITIVE) & (row_of == row_of[positives, None])
    rivals = (roles != QUERY) & ~own
    rivals[torch.arange(len(positives)), positives] = True
    return _against(similarities, rivals, positives)


def similarity(model, inputs: dict[str, torch.Tensor]) -> LossParts:
    """Squared error of the cosine of query and text with the similarity that the row names."""
    vectors, roles = embeddings(model, inputs), inputs["roles"]
    cosines = (vectors[roles == QUERY] * vectors[roles == POSITIVE]).sum(dim=1)
    return _parts((cosines - inputs["targets"]).square().sum(), torch.tensor(len(cosines), device=cosines.device))


def scores(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The head's outputs, float32 [texts, labels]."""
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()


def embeddings(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last token's last hidden state of each text, of length 1: float32 [texts, hidden]."""
    from swift.models.embed import last_hidden

    return last_hidden(model, inputs["input_ids"], inputs["attention_mask"])


def _against(values: torch.Tensor, allowed: torch.Tensor, right: torch.Tensor) -> LossParts:
    """Cross entropy of the right one of the allowed values of each line: [lines, texts], [lines, texts], [lines]."""
    values = values.masked_fill(~allowed, float("-inf"))
    total = F.cross_entropy(values, right, reduction="sum")
    return _parts(total, torch.tensor(len(right), device=right.device), values.argmax(dim=1) == right)


def _parts(total: torch.Tensor, items: torch.Tensor, right: torch.Tensor | None = None) -> LossParts:
    """Sums and counts of a batch; without `right` there is no accuracy (no row is counted for it)."""
    zero = torch.zeros_like(items)
    hits = zero if right is None else right.sum()
    return LossParts(total, items, hits, zero if right is None else items, hits)


class HeadTrainer(SftTrainer):
    """`SftTrainer` over batches of `HeadCollator`, whose loss and counts are those of `objective`."""

    def __init__(self, *, objective: Objective, **settings: Any):
        super().__init__(**{**settings, "acc_strategy": "row"})
        self.objective = objective

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        """Items of the step's batches, int64 scalar: what `objective` divides its sums by."""
        if not batch_samples:
            return None
        count = torch.stack([self._items(batch) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def _items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Rows with a label each, else positives, or all documents of a pointwise ranker; fillers are none."""
        if not batch["row_ids"]:
            return torch.tensor(0)
        if "targets" in batch:
            return torch.tensor(len(batch["targets"]))
        if self.objective is pointwise:
            return torch.tensor(len(batch["roles"]))
        return (batch["roles"] == POSITIVE).sum()

    def plain_forward(self, model, inputs, tokens: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, LossParts]:
        parts = self.objective(model, inputs)
        return parts.total / tokens, parts

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """A batch of nothing but fillers (the last of one process among several) goes through, and counts nothing."""
        if inputs["row_ids"]:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs.pop("row_ids")
        loss = self.plain_forward(model, inputs, num_items_in_batch, 0.0)[0] * 0.0
        self._step_losses.append((loss.detach(), []))
        return loss
