"""Linear layers on a CPU with their weights in the layout that oneDNN computes from, where a measurement says it pays.

Promises: a layer is only changed when its result stays the same up to rounding and the time of few rows shrinks; the
module's weight stays as it was (the copy takes as much memory again, and is only made where that is free); with
gradients the layer computes as before. Knows nothing of engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

ROWS = (1, 4, 8, 16, 32)  # how many tokens a step has
LEAST_GAIN = 1.05
REPEATS, SECONDS = 7, 0.1  # of one measurement, at most


def prepack(model: torch.nn.Module, free_bytes: int) -> str | None:
    """Change the model's linear layers; what was done in words, None when nothing was."""
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.device.type == "cpu"]
    layers = [m for m in layers if m.weight.dtype in (torch.float32, torch.bfloat16) and "forward" not in vars(m)]
    size = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    if not layers or size > free_bytes or not _known():
        return None
    gains: dict[Any, tuple[float, int] | None] = {}
    before = after = 0.0
    for layer in layers:
        kind = (layer.weight.shape, layer.weight.dtype, layer.bias is None)
        if kind not in gains:
            gains[kind] = _measure(layer)
        found = gains[kind]
        if found is not None:
            gain, least_rows = found
            layer.forward = _packed(layer, least_rows)  # type: ignore[method-assign]
            before, after = before + layer.weight.numel(), after + layer.weight.numel() / gain
    if not before:
        return None
    return f"linear layers prepacked by oneDNN ({before / after:.1f} times as fast for up to {ROWS[-1]} tokens)"


def packed_together(layers: Sequence[torch.nn.Module]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """One product for linear layers of the same input, their results side by side: [tokens, all outputs]. It stands for
    what `prepack` has done with them. None where they aren't plain or oneDNN can't.
    """
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if type(layer) is not torch.nn.Linear or weight is None or weight.device.type != "cpu":
            return None
        if weight.dtype not in (torch.float32, torch.bfloat16) or weight.dtype != layers[0].weight.dtype:
            return None
    biases = [layer.bias for layer in layers]
    if not _known() or any((bias is None) != (biases[0] is None) for bias in biases):
        return None
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    try:
        packed = _pack(torch.cat([layer.weight.detach() for layer in layers]))
    except RuntimeError:  # this processor can't
        return None
    for layer in layers:
        vars(layer).pop("forward", None)
    return lambda x: _compute(x, packed, bias)


def _known() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)


def _compute(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _packed(layer: torch.nn.Linear, least_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """`layer`'s product, its weight packed when it is first needed: layers that `packed_together` takes never are."""
    width = layer.in_features
    packed: list[torch.Tensor] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight, bias = layer.weight, layer.bias
        if x.dtype != weight.dtype or x.numel() < least_rows * width or torch.is_grad_enabled():
            return linear(x, weight, bias)
        if not packed:
            packed.append(_pack(weight))
        return _compute(x, packed[0], bias)

    return forward


@torch.no_grad()
def _measure(layer: torch.nn.Linear) -> tuple[float, int] | None:
    """(times as fast, from how many rows on) for a layer of this kind; None when it doesn't pay or isn't the same."""
    weight, bias = layer.weight, layer.bias
    try:
        packed = _pack(weight)
        x = torch.randn(3, weight.shape[1]).to(weight.dtype)
        wanted, found = linear(x, weight, bias), _compute(x, packed, bias)
    except RuntimeError:  # this processor can't
        return None
    scale = float(wanted.float().abs().max()) + 1e-6
    if float((wanted.float() - found.float()).abs().max()) > scale * (1e-4 if weight.dtype == torch.float32 else 0.02):
        return None
    plain_time = packed_time = 0.0
    least_rows = 1
    for rows in ROWS:
        x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
        plain, fast = _time(lambda: linear(x, weight, bias)), _time(lambda: _compute(x, packed, bias))  # noqa: B023
        if rows == 1 and fast > plain:
            least_rows, fast = 2, plain
        plain_time, packed_time = plain_time + plain, packed_time + fast
    gain = plain_time / packed_time
    return (gain, least_rows) if gain >= LEAST_GAIN else None


def _time(work: Callable[[], Any]) -> float:
    """Of the fastest run, as other processes only ever add to it."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
        if time.perf_counter() > end:
            break
    return best
