"""What training in several processes needs to know of a model.

Promises: DDP searches for parameters without gradient (a walk over the graph in every step) only where a batch can
leave some out. Knows nothing of launchers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swift.errors import TrainingError

if TYPE_CHECKING:
    import torch

# One module for each expert: those that no token is sent to have no gradient. Fused experts are one tensor.
_SINGLE_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_OTHER_SENSES = re.compile(r"(^|[._])(vision|visual|image|video|audio|speech|multi_modal|multimodal|mm)([._]|$)")


def may_leave_out(model: torch.nn.Module) -> str | None:
    """Why a batch may leave some trained parameters without a gradient, None where all take part in every batch."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _SINGLE_EXPERT.search(name):
            return "an expert that no token is sent to has no gradient"
        if _OTHER_SENSES.search(name):
            return "a batch of text leaves out what sees or hears"
    return None


def left_out(error: BaseException) -> TrainingError | None:
    """The error to show when DDP met parameters without gradient, None for any other error."""
    if "Expected to have finished reduction in the prior iteration" not in str(error):
        return None
    return TrainingError(
        "some trained parameters took no part in a step, and DDP waits for the gradients of all",
        where="--ddp_find_unused_parameters false",
        fix="--ddp_find_unused_parameters true, or leave them out of the training (--target_modules, freezing)",
    )
