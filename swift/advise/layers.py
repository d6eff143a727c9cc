"""The dimensions of a decoder: linear layers, decoder layers, a whole model, and how many parameters they hold.

Knows nothing of config.json: see `shape_of`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """`count` matrices [outputs, inputs] in one layer, of which a token passes through `used` (experts: top_k)."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    used: float = 1
    expert: bool = False
    router: bool = False

    @property
    def parameters(self) -> int:
        return self.count * (self.inputs * self.outputs + self.outputs * self.bias)


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `query`, `key`, `value`: widths of all heads; `cached`: values per token in the KV cache.

    `inner`: width of the dense (or shared) MLP, 0 without; `top_k` experts of width `expert_inner` per token. `window`:
    tokens that attention looks back on, None for all of them. `extras`: parameters outside linear layers.
    """

    linears: tuple[Linear, ...]
    heads: int
    query: int
    key: int
    value: int
    attended: int
    cached: int
    inner: int
    expert_inner: int = 0
    experts: int = 0
    top_k: int = 0
    window: int | None = None
    extras: int = 0
    gated: bool = True
    qk_norm: bool = False
    norms: int = 2
    layer_norm: bool = False  # torch's LayerNorm, which keeps no float32 copies
    wide_norm: bool = False  # the norm's weight is applied in float32 (Gemma)
    softcap: bool = False  # attention scores pass through a tanh
    dropout: bool = False  # attention drops scores while training

    @property
    def parameters(self) -> int:
        return self.extras + sum(linear.parameters for linear in self.linears)


@dataclass(frozen=True)
class Shape:
    """A whole model. `tower`: parameters of vision or audio parts; `extras`: final norm, learned positions."""

    model_type: str
    hidden: int
    vocab: int
    context: int | None
    layers: tuple[Layer, ...]
    tied: bool
    extras: int
    head_bias: bool = False
    tower: int = 0
    exact: bool = True
    final_softcap: bool = False  # the logits pass through a tanh
    stored: int | None = None  # parameters counted in the weight files

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        """Parameters of the output layer that are its own."""
        return (0 if self.tied else self.embedding) + self.head_bias * self.vocab

    @functools.cached_property
    def counted(self) -> int:
        """Parameters by config.json."""
        return self.embedding + self.head + self.extras + self.tower + sum(layer.parameters for layer in self.layers)

    @property
    def parameters(self) -> int:
        return self.stored or self.counted

    @functools.cached_property
    def active(self) -> int:
        """Parameters that one token is multiplied with: all linear layers it passes, and the output layer."""
        matmul = sum(x.used * x.inputs * x.outputs for layer in self.layers for x in layer.linears)
        return int(matmul) + self.embedding

    @functools.cached_property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the decoder layers, experts among them."""
        return sum(x.count * x.inputs * x.outputs for layer in self.layers for x in layer.linears)

    @functools.cached_property
    def expert_parameters(self) -> int:
        return sum(x.parameters for layer in self.layers for x in layer.linears if x.expert)
