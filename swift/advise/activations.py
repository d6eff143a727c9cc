"""What autograd keeps per token and layer: a ledger of the tensors that transformers' decoder layers save for the
backward pass.

Promises: counts in bytes, from a layer's shape and the way it trains, tensor by tensor; the sums equal what
`torch.autograd.graph.saved_tensors_hooks` sees on llama-like, Gemma-like and mixture-of-experts layers (tests). Knows
nothing of kernels that save less (torch.compile, Liger): for those it is an upper bound.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from swift.advise.layers import Layer, Linear

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
WIDE = 4  # norms and softmax statistics are float32 whatever the model's dtype


@dataclass(frozen=True)
class Regime:
    """How a layer trains. `item`: bytes of an activation; `adapter_item`: of a LoRA weight (0: full training).

    `mixed`: under autocast. `targets`: names of the linear layers with LoRA. `dropout`: LoRA's, above 0 or not.
    `mask`: bytes that torch's dropout keeps per value on this device (0: a copy as wide as the input, on the CPU).
    `fused_dropout`: the device's attention kernel drops scores without keeping them (not the CPU's).
    `alone`: a pass holds one row.
    """

    item: int
    mixed: bool = False
    full: bool = False
    adapter_item: int = 4
    rank: int = 8
    targets: frozenset[str] = frozenset()
    dropout: bool = False
    mask: int = 0
    eager: bool = False
    padded: bool = False
    fused_dropout: bool = True
    alone: bool = False

    def keeps_scores(self, layer: Layer) -> bool:
        """Whether attention writes all scores out: no fused kernel of torch takes a soft cap."""
        return self.eager or layer.softcap or (layer.dropout and not self.fused_dropout)

    @property
    def compute(self) -> int:
        """Bytes of what LoRA's matrices multiply."""
        return self.item if self.mixed or self.full else self.adapter_item


@functools.cache
def saved_per_token(layer: Layer, hidden: int, regime: Regime, length: int) -> float:
    """Bytes saved per token of one layer in rows of `length` tokens."""
    return (
        _norms(layer, hidden, regime)
        + _attention(layer, hidden, regime, length)
        + _mlp(layer, hidden, regime)
        + _experts(layer, hidden, regime)
    )


def fused_saved_per_token(layer: Layer, hidden: int, regime: Regime, light: bool) -> float | None:
    """The same of a layer whose norms, projections and MLP are fused (swift.train.lean), `light` without gate and up;
    None for layers that the fused operations don't know whole: experts, soft caps, LoRA on a part of the projections.
    """
    names = {x.name for x in layer.linears}
    plain = not (layer.experts or regime.keeps_scores(layer) or layer.layer_norm) and layer.gated
    if regime.full or not plain or not names <= regime.targets or len(layer.linears) != 7:
        return None
    item, rank = regime.item, regime.rank
    norms = layer.norms * (hidden * item + WIDE)
    if layer.qk_norm:
        norms += (layer.query + layer.key) * item + 2 * WIDE * layer.heads
    attention = item * (layer.query + layer.key + layer.value + layer.attended) + WIDE * layer.heads
    attention += item * (hidden + 3 * rank) + item * (rank if regime.alone else layer.attended + rank)
    mlp = item * (hidden + 3 * rank) + (0 if light else 2 * layer.inner * item)
    masks = 5 * hidden + layer.attended + layer.inner if regime.dropout else 0
    return norms + attention + mlp + masks


def _norms(layer: Layer, hidden: int, regime: Regime) -> float:
    """Each norm keeps its input (in float32) and, when its weight trains, the normed values."""
    if layer.layer_norm:
        return layer.norms * (hidden * regime.item + 2 * WIDE)
    normed = WIDE if layer.wide_norm else regime.item
    trained = hidden * normed if regime.full else 0
    total = layer.norms * (hidden * WIDE + WIDE + trained)
    if layer.qk_norm:
        width = layer.query + layer.key
        total += width * WIDE + (width * normed if regime.full else 0) + 2 * WIDE * layer.heads
    return total


def _inputs(linears: list[Linear], width: int, regime: Regime, kept: bool) -> float:
    """What linear layers that share one input of `width` keep of it. `kept`: something else keeps that tensor
    anyway.
    """
    shared = 0 if kept else width * regime.item
    if regime.full:
        return shared
    adapted = [x for x in linears if x.name in regime.targets]
    total = float(len(adapted) * regime.rank * regime.compute)
    if not adapted:
        return 0.0
    if regime.dropout:
        mask = regime.mask or regime.adapter_item
        return total + len(adapted) * width * (mask + regime.compute)
    if regime.mixed or regime.adapter_item != regime.item:
        return total + len(adapted) * width * regime.compute  # every adapter casts its own copy
    return total + shared


def _attention(layer: Layer, hidden: int, regime: Regime, length: int) -> float:
    """q, k, v after the rotation, the output, and the softmax's statistics; all scores with eager attention."""
    mlp = _mlp_linears(layer)
    own = [x for x in layer.linears if not x.expert and not x.router and x not in mlp]
    ins, out = own[:-1], own[-1]
    item = regime.item
    total = 0.0
    inputs: dict[int, list[Linear]] = {}
    for linear in ins:
        inputs.setdefault(linear.inputs, []).append(linear)
    for width, group in inputs.items():
        total += _inputs(group, width, regime, kept=False)
    eager = regime.keeps_scores(layer)
    repeated = (regime.padded or eager) and layer.key < layer.query
    spread = layer.query + layer.attended if repeated else layer.key + layer.value
    total += item * (layer.query + spread) + item * layer.attended
    total += _inputs([out], layer.attended, regime, kept=True)
    if eager:
        scores = WIDE + (item if item < WIDE else 0) + (item if layer.softcap else 0)
        scores += (regime.mask or item) + item if layer.dropout else 0
        return total + layer.heads * length * scores
    statistics = WIDE * layer.heads
    return total + statistics + (length * item if regime.padded else 0)


def _mlp_linears(layer: Layer) -> list[Linear]:
    """The linear layers of the dense (or shared) MLP: those after attention that are no experts."""
    plain = [x for x in layer.linears if not x.expert and not x.router]
    return [x for x in plain[_first_of_mlp(layer, plain) :]] if layer.inner else []


def _first_of_mlp(layer: Layer, plain: list[Linear]) -> int:
    count = 3 if layer.gated and plain[-2].outputs == layer.inner else 2
    return len(plain) - count


def _mlp(layer: Layer, hidden: int, regime: Regime) -> float:
    """Gate, its activation, up, and what the down projection keeps of their product."""
    linears = _mlp_linears(layer)
    if not linears:
        return 0.0
    wide = layer.inner * regime.item
    total = (3 if layer.gated else 1) * wide
    total += _inputs(linears[:-1], hidden, regime, kept=False)
    return total + _inputs(linears[-1:], layer.inner, regime, kept=False)


def _experts(layer: Layer, hidden: int, regime: Regime) -> float:
    """The chosen experts of a token: gathered input, gate and up, activation, product, output before weighting;
    routing.
    """
    if not layer.experts:
        return 0.0
    names = {x.name for x in layer.linears if x.expert}
    trained = regime.full or bool(names & regime.targets)
    width = (3 if layer.gated else 1) * layer.expert_inner + hidden
    if trained:
        width += layer.expert_inner + hidden
    routing = layer.top_k * (3 * 8 + 8 + regime.item) + layer.experts * WIDE
    return layer.top_k * width * regime.item + routing + (hidden * regime.item if regime.full else 0)


def expert_copies(layer: Layer, regime: Regime) -> int:
    """Bytes of the adapted expert weights that peft builds (base plus update) and autograd keeps, per layer."""
    adapted = [x for x in layer.linears if x.expert and x.name in regime.targets and not regime.full]
    return sum(x.count * x.inputs * x.outputs * regime.item for x in adapted)


def largest_transient(layer: Layer, hidden: int, regime: Regime, length: int) -> float:
    """Bytes per token of the gradients that live at once in the backward pass of a layer, at its widest place."""
    inner = max(layer.inner, layer.top_k * layer.expert_inner)
    dense = inner * 3 + hidden * 2
    attention = layer.query + layer.key + layer.value + layer.attended + hidden
    if regime.keeps_scores(layer):
        attention += 2 * layer.heads * length  # gradients of the scores before and after the softmax
    return max(dense, attention) * regime.item + (hidden * WIDE if regime.item < WIDE else 0)
