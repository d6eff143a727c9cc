"""The fast path held against the plain one at the start of a run: one small batch, its loss and all its gradients.

Promises: weights, gradients and random numbers are as before afterwards. Zero matrices (LoRA's B at the start) are
filled with noise for the while, since nothing shows through a zero. What differs is left out, aloud, part by part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from swift.data.pack import examples_of
from swift.train import random_state
from swift.train.lean.path import FastPath
from swift.train.losses import IGNORED, label_count
from swift.train.outofmemory import is_out_of_memory

if TYPE_CHECKING:
    from swift.train.trainer import SftTrainer

log = logging.getLogger("swift")

ROWS, LENGTHS, SHORTEST = 3, (32, 20, 12), 4
SIGHT = 1000  # how many rows are looked through for one with media
# Relative: of the loss, of a parameter's gradient. Below 32 bits the order of sums alone is worth about that much.
TOLERANCES = {True: (1e-4, 2e-3), False: (2e-2, 0.15)}

Loss = Callable[[], torch.Tensor]


class CheckFirst(TrainerCallback):
    """Checks the trainer's fast path before the first step, and takes it out of the model after the last."""

    def __init__(self, trainer: SftTrainer, rows: Sequence[Any]):
        self.trainer, self.rows = trainer, rows

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, path = self.trainer, self.trainer.fast_path
        if path is None or not path.parts():
            return
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            path.refuse("the weights are spread over processes")
            return

        def by(forward: Callable) -> Callable:
            def loss(batch: dict[str, Any]) -> torch.Tensor:
                batch = trainer._prepare_inputs(batch)
                batch.pop("row_ids", None)
                return forward(trainer.model, batch, label_count(batch), 0.0)[0]

            return loss

        mixed = trainer.args.bf16 or trainer.args.fp16
        verify(
            path,
            self.rows,
            trainer.data_collator,
            by(trainer.plain_forward),
            by(trainer.forward_pass),
            mixed,
            trainer.args.train_batch_size,
        )
        if path.fused_layers:
            log.info(path.fused.summary())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.fast_path is not None:
            self.trainer.fast_path.release()


def verify(
    path: FastPath,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable,
    plain: Callable,
    fast: Callable,
    mixed: bool = False,
    batch_size: int | None = None,
) -> None:
    """Compare and leave out what differs. `plain(batch)` and `fast(batch)` give a batch's loss, with gradient.

    `mixed`: under autocast. `batch_size`: rows of a training batch, than whose first no more tokens are tried, so that
    the plain path needs no more memory here than it would in training.
    """
    lengths = LENGTHS if batch_size is None else _lengths(rows, batch_size)
    pieces = _pieces(_chosen(rows, path), lengths)
    exact = not mixed and all(p.dtype == torch.float32 for p in path.model.parameters() if p.is_floating_point())
    if any("media" in piece for piece in pieces):
        try:
            return _compare(path, collate(pieces), plain, fast, exact)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        log.warning("no memory to hold a row with media against the plain path: one of text is taken")
        pieces = [piece for piece in pieces if "media" not in piece]
    if pieces:
        _compare(path, collate(pieces), plain, fast, exact)


def _compare(path: FastPath, batch: Mapping[str, Any], plain: Callable, fast: Callable, exact: bool) -> None:
    model = path.model
    with random_state.untouched(), _at_rest(model), _noise_in_zeros(model):
        with path.aside():
            try:
                expected = _gradients(model, lambda: plain(batch))
            except (RuntimeError, AssertionError) as error:  # layers that have gradients in training mode only
                if is_out_of_memory(error):
                    raise
                return _leave_all_out(path, error)
        while path.parts():
            why = _difference(model, expected, lambda: fast(batch), exact)
            if why is None:
                return
            part = path.parts()[0]
            path.without(part)
            log.warning("--%s is off: %s", part, why)


def _leave_all_out(path: FastPath, error: Exception) -> None:
    """The model can't be held against itself."""
    for part in list(path.parts()):
        path.without(part)
        log.warning("--%s is off: it can't be checked here (%s)", part, _in_a_line(error))


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _chosen(rows: Sequence[Any], path: FastPath) -> list[Mapping[str, Any]]:
    """The first rows; one with media among them where the model takes media and a row in sight has some. Media are of
    one kind, since training may never have two in a batch (GLM-4V's images and videos).
    """
    chosen = [examples_of(rows[i])[0] for i in range(min(ROWS, len(rows)))]
    if path.sees and not any("media" in row for row in chosen):
        seen = (row for i in range(min(SIGHT, len(rows))) for row in examples_of(rows[i]))
        chosen[-1] = next((row for row in seen if "media" in row), chosen[-1])
    kinds = [frozenset(row["media"]) for row in chosen if "media" in row]
    return [row for row in chosen if "media" not in row or frozenset(row["media"]) == kinds[0]]


def _lengths(rows: Sequence[Any], batch_size: int) -> tuple[int, ...]:
    """`LENGTHS`, or as much shorter as the first batch is than their sum."""
    first = (row for i in range(min(batch_size, len(rows))) for row in examples_of(rows[i]))
    share = min(1.0, sum(len(row["labels"]) for row in first) / sum(LENGTHS))
    return tuple(max(SHORTEST, int(length * share)) for length in LENGTHS)


def _pieces(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """A few tokens of each row around its first label. Of rows with media the shortest stays whole, since its tokens
    stand for them; of the others it is a few tokens that are learned, which stand for nothing."""
    whole = min((row for row in rows if "media" in row), key=lambda row: len(row["labels"]), default=None)
    pieces = []
    for row, length in zip(rows, lengths, strict=False):
        first, end = _learned(row)
        if row is whole:
            pieces.append(dict(row))
        elif "media" not in row:
            start = max(0, min(first - length // 2, len(row["labels"]) - length))
            pieces.append(_cut(row, start, start + length))
        elif end - first >= SHORTEST:
            pieces.append(_cut(row, first, min(end, first + length)))
    return pieces


def _learned(row: Mapping[str, Any]) -> tuple[int, int]:
    """Where the first run of labels begins and ends."""
    labels = row["labels"]
    first = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
    return first, next((i for i in range(first, len(labels)) if labels[i] == IGNORED), len(labels))


def _cut(row: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    cut = ("input_ids", "labels", "loss_scale")
    return {name: value[start:end] if name in cut else value for name, value in row.items() if name != "media"}


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Without dropout. bitsandbytes' 8-bit layers stay in training: at rest they round their inputs to 8 bits too,
    where two ways of adding up differ by far more than in training.
    """
    training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "base_layer"):
            module.training = True
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _noise_in_zeros(model: nn.Module) -> Iterator[None]:
    zeros = [p for p in model.parameters() if p.requires_grad and not p.any()]
    generator = torch.Generator().manual_seed(0)
    for parameter in zeros:
        noise = torch.randn(parameter.shape, generator=generator) * 0.02
        parameter.data.copy_(noise)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.data.zero_()


def _gradients(model: nn.Module, loss: Loss) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
    """(the loss, the gradient of each trained parameter); `.grad` and the hooks on it are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    value = loss()
    return value.detach().float(), torch.autograd.grad(value, trained, allow_unused=True)


def _difference(model: nn.Module, expected: tuple[torch.Tensor, Sequence], loss: Loss, exact: bool) -> str | None:
    """In words, or None when it is within the tolerance."""
    try:
        value, gradients = _gradients(model, loss)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return _in_a_line(error)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    of_loss, of_gradient = TOLERANCES[exact]
    if not abs(float(value - expected[0])) <= of_loss * max(1.0, abs(float(expected[0]))):
        return f"the loss of a batch is {float(value):.6g}, on the plain path {float(expected[0]):.6g}"
    norms = [0.0 if g is None else float(g.float().norm()) for g in expected[1]]
    floor = 1e-2 * (sum(n * n for n in norms) / max(len(norms), 1)) ** 0.5
    for name, plain, fast, norm in zip(names, expected[1], gradients, norms, strict=True):
        if plain is None and fast is None:
            continue
        gap = float(((0.0 if fast is None else fast.float()) - (0.0 if plain is None else plain.float())).norm())
        if not gap <= of_gradient * (norm + floor):
            return f"the gradient of {name} differs from the plain path's by {gap / (norm + floor):.1%}"
    return None
