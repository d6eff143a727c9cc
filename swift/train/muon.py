"""`--optim muon`: torch's Muon for the matrices of layers, AdamW for all else, as one optimizer.

Promises: learning rates of all groups are those of the schedule, and its state is saved and loaded as any optimizer's.
Muon's step has by default the size of AdamW's (`adjust_lr_fn=match_rms_adamw`, arXiv 2502.16982), so that learning
rates for AdamW fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from swift.config.training import TrainingOptions
from swift.errors import UsageError

NAME = "muon"
TRUTH = {"true": True, "false": False}
# what --optim_args may set, and how it is read
SETTINGS: dict[str, Callable[[str], Any]] = {
    "momentum": float,
    "nesterov": lambda text: TRUTH[text.lower()],
    "ns_steps": int,
    "eps": float,
    "adjust_lr_fn": str,
}


def settings_of(optim_args: str | None) -> dict[str, Any]:
    """Muon's settings; UsageError for those that it doesn't have or can't read."""
    if not hasattr(torch.optim, "Muon"):
        raise UsageError("this torch has no Muon", where=f"--optim {NAME}", fix="torch 2.9 or later")
    found: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw"}
    for part in filter(None, (optim_args or "").replace(" ", "").split(",")):
        name, _, text = part.partition("=")
        if name not in SETTINGS:
            fix = f"one of {', '.join(SETTINGS)}"
            raise UsageError(f"--optim {NAME} doesn't read {name}", where="--optim_args", fix=fix)
        try:
            found[name] = SETTINGS[name](text)
        except (ValueError, KeyError) as error:
            raise UsageError(f"{name} can't be {text!r}", where="--optim_args", fix=f"leave out {name}") from error
    try:
        torch.optim.Muon([nn.Parameter(torch.zeros(1, 1))], **found)
    except ValueError as error:
        raise UsageError(str(error), where="--optim_args", fix="leave it out") from error
    return found


def is_matrix(model: nn.Module) -> Callable[[nn.Parameter], bool]:
    """Which parameters Muon takes: matrices, but no embeddings and no head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    left = {id(p) for module in ends if module is not None for p in module.parameters()}
    left |= {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return lambda parameter: parameter.ndim == 2 and id(parameter) not in left


class MuonWithAdamW(torch.optim.Optimizer):
    """`groups`: dictionaries of `params`, `lr` and `weight_decay`."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        training: TrainingOptions,
        matrix: Callable[[nn.Parameter], bool],
        settings: dict[str, Any],
    ):
        ours, theirs = _divided(groups, matrix), _divided(groups, lambda parameter: not matrix(parameter))
        betas = (training.adam_beta1, training.adam_beta2)
        self.parts: list[torch.optim.Optimizer] = []
        if ours:
            self.parts.append(torch.optim.Muon(ours, lr=training.learning_rate, **settings))
        if theirs:
            adam = torch.optim.AdamW(
                theirs, lr=training.learning_rate, betas=betas, eps=training.adam_epsilon, fused=True
            )
            self.parts.append(adam)
        self.counts = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on these groups and this state."""
        start = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            part.param_groups, part.state = self.param_groups[start : start + count], self.state
            start += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def _divided(groups: Sequence[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    """The groups with the wanted parameters alone, without those that are empty."""
    found = [group | {"params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in found if group["params"]]
