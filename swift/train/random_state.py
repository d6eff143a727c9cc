"""The state of every random generator that training draws from, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from swift.models.device import cards


class RandomState(NamedTuple):
    python: Any
    numpy: Any
    cpu: torch.Tensor
    cards: list[list[torch.Tensor]]

    @classmethod
    def now(cls) -> RandomState:
        of_cards = [module.get_rng_state_all() for module in cards()]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), of_cards)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for module, state in zip(cards(), self.cards, strict=True):
            module.set_rng_state_all(state)


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever runs inside, the random numbers that training draws afterwards are those it would have drawn before."""
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()


@contextmanager
def no_outside_entropy() -> Iterator[None]:
    """Within, `torch.seed` takes its number from training's own generator and not from the system, so that a model that
    seeds its layers anew in every forward pass (Reformer, on a CPU) draws the same numbers in a resumed run.
    """
    outside = torch.seed

    def seed() -> int:
        drawn = int(torch.empty((), dtype=torch.int64).random_())
        torch.manual_seed(drawn)
        return drawn

    torch.seed = seed
    try:
        yield
    finally:
        torch.seed = outside
