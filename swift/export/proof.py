"""Compares the logits of two models on the same prompts, and says what difference rounding explains.

The chain of a merge's proof, all computed in float32 where memory allows:
  base + adapter --(merge, float32)--> merged --(round to the saved dtype)--> rounded --(save, load)--> reloaded
The first and the last arrow must change nothing but float32 noise. What the middle one changes is the rounding, by
construction; it is shown, with a warning when it is more than half of what the adapter itself changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from swift.engines.whole import moved
from swift.errors import ExportError

NOISE = {torch.float32: 1e-4, torch.bfloat16: 2**-4, torch.float16: 2**-7}  # of the largest logit


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the tensors of the media between them by the name of the model's argument."""

    ids: Sequence[int]
    tensors: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class OtherBase:
    """The answers of the adapter on the base that wasn't chosen (`base`, in words), beside the merged model's.
    `divergence` in nats, `agreement`: share of equal top-1 tokens.
    """

    base: str
    difference: float
    divergence: float
    agreement: float

    def lines(self) -> list[str]:
        return [
            f"  the adapter on {self.base}:",
            f"    differs from the merged model by up to            {self.difference:.4g}",
            f"    KL divergence {self.divergence:.4f} nats, the same most likely token at {100 * self.agreement:.2f} %",
        ]


@dataclass(frozen=True)
class MergeProof:
    """Largest absolute differences of logits over all positions of all prompts; `agreement`: share of equal top-1
    tokens.
    """

    prompts: int
    positions: int
    computed_in: str
    largest_logit: float
    adapter_effect: float  # base -> base + adapter
    merge_difference: float  # base + adapter -> merged in memory
    rounding: float  # merged in memory -> rounded to the saved dtype
    difference: float  # base + adapter -> reloaded from disk
    reload_difference: float  # rounded in memory -> reloaded from disk
    agreement: float
    changed_tensors: int
    tensors: int
    other: OtherBase | None = None

    def lines(self) -> list[str]:
        return [
            f"proof on {self.prompts} prompts ({self.positions} positions, computed in {self.computed_in}):",
            f"  the adapter changes the base's logits by up to      {self.adapter_effect:.4g}",
            f"  the merged model differs from base+adapter by up to {self.difference:.4g}",
            f"  of which rounding its weights explains up to        {self.rounding:.4g}",
            f"  the most likely token is the same at                {100 * self.agreement:.2f} % of the positions",
            f"  tensors changed by the merge                        {self.changed_tensors} of {self.tensors}",
            *(self.other.lines() if self.other else ()),
        ]

    def to_json(self) -> dict:
        return asdict(self)

    def check(self) -> None:
        """ExportError when nothing changed or more changed than rounding explains."""
        noise = NOISE[getattr(torch, self.computed_in)] * max(1.0, self.largest_logit)
        if self.changed_tensors == 0:
            fix = "--merge_dtype float32 keeps changes this small" if self.adapter_effect else "is the adapter trained?"
            raise ExportError("merging changed nothing: the merged weights equal the base's", fix=fix)
        if self.adapter_effect == 0:
            raise ExportError("the adapter changes no logit of the base", fix="is it trained, and for this base?")
        if self.reload_difference > noise:
            raise ExportError(
                f"the saved model isn't the merged one: logits differ {self.reload_difference:.4g} (noise {noise:.2g})"
            )
        if self.merge_difference > noise:
            raise ExportError(
                f"the merged model isn't base+adapter: logits differ {self.merge_difference:.4g} (noise {noise:.2g})"
            )

    def warning(self) -> str | None:
        """A merge that is right, but whose dtype is too coarse for what was learned."""
        if self.rounding <= self.adapter_effect / 2:
            return None
        share = 100 * self.rounding / self.adapter_effect
        return f"rounding the merged weights is {share:.0f} % of what the adapter does: --merge_dtype float32 avoids it"


def answerable(model, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts that the model takes: those with media alone where it refuses text without them (BLIP-2, Kosmos-2).
    ExportError when there are none then."""
    texts = [prompt for prompt in prompts if not prompt.tensors]
    media = [prompt for prompt in prompts if prompt.tensors]
    try:
        logits_of(model, texts[:1])
    except (TypeError, ValueError) as error:
        if media:
            return media
        what, fix = f"nothing to compare on: the model takes no text alone ({error})", "--val_dataset FILE with media"
        raise ExportError(what, fix=fix) from error
    return prompts


@torch.inference_mode()
def logits_of(model, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """float32 logits [tokens, vocabulary] of each prompt, [1, labels] of a classifier, on the cpu; prompts go through
    one by one (no padding)."""
    device = model.get_input_embeddings().weight.device
    found = []
    for prompt in prompts:
        inputs = {"input_ids": torch.tensor([list(prompt.ids)], device=device)}
        inputs |= moved(prompt.tensors, device, model.dtype)
        found.append(model(**inputs, use_cache=False).logits.flatten(0, -2).float().cpu())
    return found


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """NaN counts as infinite: a broken model must not pass."""
    worst = max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))
    return worst if worst == worst else float("inf")


def other_base(words: str, other: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]) -> OtherBase:
    """What merging onto another base would have answered, against what was merged."""
    from swift.export.report import divergence

    apart, same = divergence(other, merged)
    return OtherBase(words, largest_difference(other, merged), apart, same)


def top1_agreement(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    same = sum((a.argmax(-1) == b.argmax(-1)).sum().item() for a, b in zip(one, other, strict=True))
    return same / sum(len(a) for a in one)
