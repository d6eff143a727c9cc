"""The loss of a causal language model on its label positions, and the counts that go with it.

Promises: the cross entropy is computed in float32 and only where there is a label, so the value and the gradient equal
transformers' own while the float32 copy of the logits is as small as the labels are. Knows nothing of models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

IGNORED = -100


class LossParts(NamedTuple):
    """`total`: scalar float32, the sum of the tokens' losses, with gradient. The others count, without gradient.

    `tokens` labelled tokens, `right` those among them that the model would have chosen, `rows` sequences with a label,
    `right_rows` those of them that are right throughout: int64 scalars.
    """

    total: torch.Tensor
    tokens: torch.Tensor
    right: torch.Tensor
    rows: torch.Tensor
    right_rows: torch.Tensor


def label_count(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labelled tokens of a padded batch that something stands before: int64 scalar."""
    return (batch["labels"][:, 1:] != IGNORED).sum()


def label_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions whose output predicts a label in some row: int64 [K], for `logits_to_keep`. `labels` int64 [B, T]."""
    return (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)


def causal_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, weights: torch.Tensor | None = None
) -> LossParts:
    """`logits` [B, K, V] at positions whose next token is `labels` int64 [B, K] (-100: none).

    `weights` float [B, K] multiply the tokens' losses; a weighted token still counts as one.
    """
    kept = labels != IGNORED
    chosen = logits[kept].float()
    targets = labels[kept]
    if weights is None:
        total = F.cross_entropy(chosen, targets, reduction="sum", label_smoothing=smoothing)
    else:
        each = F.cross_entropy(chosen, targets, reduction="none", label_smoothing=smoothing)
        total = (each * weights[kept]).sum()
    with torch.no_grad():
        hits = chosen.argmax(dim=-1) == targets
        row_of = kept.nonzero()[:, 0]
        wrong_in_row = torch.zeros(labels.shape[0], dtype=torch.int64, device=labels.device)
        wrong_in_row.index_add_(0, row_of, (~hits).long())
        labelled = kept.any(dim=1)
        right_rows = (labelled & (wrong_in_row == 0)).sum()
    return LossParts(total, kept.sum(), hits.sum(), labelled.sum(), right_rows)
