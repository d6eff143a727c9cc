"""Which models need DDP's search for parameters without gradient."""

from __future__ import annotations

import torch

from swift.train.distributed import left_out, may_leave_out
from tests import tiny
from tests.train import support


def test_the_search_is_for_models_that_can_leave_parameters_out():
    assert may_leave_out(tiny.model("llama")) is None
    assert may_leave_out(support.lora(tiny.model("llama"))) is None
    experts = torch.nn.ModuleDict({"experts": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))})
    assert may_leave_out(experts)
    eyes = torch.nn.ModuleDict({"visual": torch.nn.Linear(2, 2), "text": torch.nn.Linear(2, 2)})
    assert may_leave_out(eyes)
    eyes["visual"].requires_grad_(False)
    assert may_leave_out(eyes) is None


def test_ddps_own_words_become_the_option_to_type():
    text = "Expected to have finished reduction in the prior iteration before starting a new one. This error ..."
    assert "--ddp_find_unused_parameters true" in str(left_out(RuntimeError(text)))
    assert left_out(RuntimeError("another")) is None
