"""A forward pass of our own for decoders of the common structure, with fewer operations than the model's.

A layer is a norm, queries, keys and values from one product, rotary positions, attention, and a norm and a gated
product or whatever else stands in `mlp`, with further norms behind both as Gemma has them. Promises: `lean_of` only
reads the structure, and says what it doesn't know; whether the results are the model's has to be seen by computing.
Weights are read from the model's own modules at every call, but for copies in oneDNN's layout; LoRA reaches it through
the modules' hooks. The last layer computes nothing behind its attention but what is asked for.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from swift.engines.lora import Loras
from swift.engines.prepack import packed_together
from swift.engines.ragged_attention import Piece, RaggedCache, Strip

Map = Callable[[torch.Tensor], torch.Tensor]
Turns = dict[str, tuple[torch.Tensor, torch.Tensor]]

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
MORE_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
SCALES = ("logit_scale", "logits_scaling", "residual_multiplier", "embedding_multiplier", "lm_head_multiplier")


PROBE = 24  # tokens of the check
TOLERANCE = {torch.float32: 1e-4}  # of what a layer adds; HALF_TOLERANCE otherwise
HALF_TOLERANCE = 0.03


class Unknown(Exception):
    """The structure isn't the one that is known here."""


@dataclass(frozen=True)
class Attention:
    """`project`: [tokens, hidden] -> [tokens, (heads + 2 key_heads) * width]"""

    project: Map
    out: nn.Module
    query_norm: Map | None
    key_norm: Map | None
    heads: int
    key_heads: int
    width: int
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None


@dataclass(frozen=True)
class Layer:
    """`after_attention` and `after_mlp` are norms of what is added to the stream."""

    kind: str
    before_attention: Map
    attention: Attention
    after_attention: Map | None
    before_mlp: Map
    mlp: Map
    after_mlp: Map | None


class LeanModel:
    def __init__(self, model: Any, layers: Sequence[Layer], typed: bool):
        base = model.base_model
        self._embed, self._rotary, self._typed = base.embed_tokens, base.rotary_emb, typed
        self._layers, self._norm, self._head = layers, fast_norm(base.norm), model.get_output_embeddings()
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self._device = base.embed_tokens.weight.device

    def logits(self, ids: list[int], positions: list[int], wanted: list[int], cache: RaggedCache) -> torch.Tensor:
        """[wanted, vocabulary]"""
        x = self._embed(torch.tensor(ids, device=self._device))
        turns = self._turns(x, torch.tensor([positions], device=self._device))
        asked = None if len(wanted) == len(ids) else torch.tensor(wanted, dtype=torch.long, device=self._device)
        last = len(self._layers) - 1
        for at in range(len(self._layers)):
            x = self._layer(at, x, turns, cache, asked if at == last else None)
        return self._logits(x)

    def _layer(
        self, at: int, x: torch.Tensor, turns: Turns, cache: RaggedCache, asked: torch.Tensor | None
    ) -> torch.Tensor:
        """[tokens, hidden], or of the tokens `asked` for."""
        layer = self._layers[at]
        found = attend(layer.attention, layer.before_attention(x), *turns[layer.kind], at, cache)
        if asked is not None:
            x, found = x[asked], found[asked]
        found = layer.attention.out(found)
        x = x + (found if layer.after_attention is None else layer.after_attention(found))
        found = layer.mlp(layer.before_mlp(x))
        x += found if layer.after_mlp is None else layer.after_mlp(found)
        return x

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._head(self._norm(x))
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    @torch.inference_mode()
    def difference(self, model: Any) -> str | None:
        """Each layer, and the head, beside the model's on what the model gives it, so that no error hides behind the
        rounding of the layers before; None where all are the same up to rounding.
        """
        words, context = self._embed.weight.shape[0], getattr(model.config, "max_position_embeddings", None) or 1024
        ids = torch.tensor([[(7 * i * i + 3 * i) % words for i in range(PROBE)]], device=self._device)
        places = torch.arange(PROBE, device=self._device)[None] + min(context // 2, 1000)
        given: list[torch.Tensor] = []
        hooks = [x.register_forward_pre_hook(lambda _, args: given.append(args[0][0])) for x in model.base_model.layers]
        hooks.append(model.base_model.norm.register_forward_pre_hook(lambda _, args: given.append(args[0][0])))
        try:
            own = DynamicCache(config=model.config)
            wanted = model(ids, position_ids=places, past_key_values=own, use_cache=True).logits[0]
        finally:
            for hook in hooks:
                hook.remove()
        turns = self._turns(given[0], places)
        windows = [layer.attention.window for layer in self._layers]
        strip = Strip(PROBE)
        cache = RaggedCache([], [Piece(strip, 0, 0, PROBE)], windows)
        for at, (x, after) in enumerate(itertools.pairwise(given)):
            found = self._layer(at, x, turns, cache, None)
            keys = own.layers[at].keys[0]  # attention that is nearly even doesn't show what is wrong with them
            same = _alike(strip.layers[at][0][:, -keys.shape[1] :], keys)
            if not same or not _alike(found, after, x):
                return f"{type(model.base_model.layers[at]).__name__} {at} computes something else"
        if not _alike(self._logits(given[-1]), wanted):
            return "the head computes something else"
        return None

    def _turns(self, x: torch.Tensor, places: torch.Tensor) -> Turns:
        """By kind of layer: cosines and sines [tokens, 1, turned], the sines of the first half negative."""
        found = {}
        for kind in {layer.kind for layer in self._layers}:
            cos, sin = self._rotary(x[None], places, kind) if self._typed else self._rotary(x[None], places)
            sin = sin.clone()
            sin[..., : sin.shape[-1] // 2].neg_()
            found[kind] = (cos[0, :, None], sin[0, :, None])
        return found


def _alike(found: torch.Tensor, wanted: torch.Tensor, before: torch.Tensor | None = None) -> bool:
    """Whether what was added to `before` is the same, up to the rounding of both and of the sum."""
    exact = wanted.float()
    added = exact if before is None else exact - before.float()
    rounding = 4 * torch.finfo(wanted.dtype).eps * exact.norm()
    most = TOLERANCE.get(wanted.dtype, HALF_TOLERANCE) * added.norm() + rounding
    return bool((found.float() - exact).norm() <= most)


def attend(
    own: Attention, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layer: int, cache: RaggedCache
) -> torch.Tensor:
    """x: [tokens, hidden]; returns [tokens, heads * width]."""
    states = own.project(x).view(x.shape[0], -1, own.width)
    if own.query_norm is None or own.key_norm is None:
        turned = turn(states[:, : own.heads + own.key_heads], cos, sin)
        query, keys = turned[:, : own.heads], turned[:, own.heads :]
    else:
        query = turn(own.query_norm(states[:, : own.heads]), cos, sin)
        keys = turn(own.key_norm(states[:, own.heads : own.heads + own.key_heads]), cos, sin)
    cache.store(layer, keys, states[:, own.heads + own.key_heads :])
    return cache.attend(layer, query, own.scale, own.softcap, own.sinks, own.window).flatten(1)


def turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: the first half of the turned numbers goes with the second. states: [tokens, heads, width]"""
    size = cos.shape[-1]
    part = states if size == states.shape[-1] else states[..., :size]
    swapped = torch.cat((part[..., size // 2 :], part[..., : size // 2]), -1)
    turned = (part * cos).addcmul_(swapped, sin)
    return turned if part is states else torch.cat((turned, states[..., size:]), -1)


def lean_of(model: Any, loras: Loras, windows: Sequence[int | None], copies: bool) -> LeanModel | str:
    """The forward pass, or why there is none. `copies`: of the weights of queries, keys and values, may be made."""
    try:
        _require(set(dict(model.named_children())) == {model.base_model_prefix, "lm_head"}, "the model")
        base, config = model.base_model, model.config
        parts = {"embed_tokens", "layers", "norm", "rotary_emb"}
        _require(set(dict(base.named_children())) == parts, f"{type(base).__name__}")
        _require(not any(hasattr(module, "_hf_hook") for module in model.modules()), "layers on several devices")
        for name in SCALES:
            _require(getattr(config, name, None) in (None, 1, 1.0), name)
        typed = "layer_type" in inspect.signature(base.rotary_emb.forward).parameters
        kinds = config.layer_types if typed else ["any"] * len(base.layers)
        layers = []
        for module, kind, window in zip(base.layers, kinds, windows, strict=True):
            layers.append(_layer(module, kind, window, config, loras, copies))
        return LeanModel(model, layers, typed)
    except Unknown as error:
        return str(error)


def _require(known: bool, what: str) -> None:
    if not known:
        raise Unknown(f"the structure of {what} isn't known")


def _layer(module: nn.Module, kind: str, window: int | None, config: Any, loras: Loras, copies: bool) -> Layer:
    children = dict(module.named_children())
    _require(set(children) in (LAYER, LAYER | MORE_NORMS), type(module).__name__)
    attention = _attention(children["self_attn"], window, config, loras, copies)
    first, second = fast_norm(children["input_layernorm"]), fast_norm(children["post_attention_layernorm"])
    mlp = _mlp(children["mlp"])
    if len(children) == len(LAYER):
        return Layer(kind, first, attention, None, second, mlp, None)
    before, after = (fast_norm(children[name]) for name in sorted(MORE_NORMS, reverse=True))
    return Layer(kind, first, attention, second, before, mlp, after)


def _attention(module: nn.Module, window: int | None, config: Any, loras: Loras, copies: bool) -> Attention:
    children = dict(module.named_children())
    norms = {"q_norm", "k_norm"} & set(children)
    _require(set(children) - norms == {*PROJECTIONS, "o_proj"} and len(norms) != 1, type(module).__name__)
    _require(set(dict(module.named_parameters(recurse=False))) <= {"sinks"}, type(module).__name__)
    width = module.head_dim
    for name in norms:
        weight = getattr(children[name], "weight", None)  # NanoChat's has none, and comes after the rotation
        _require(weight is not None and weight.shape == (width,), f"{name} in {type(module).__name__}")
    projections = [children[name] for name in PROJECTIONS]
    return Attention(
        project=_side_by_side(projections, loras, copies),
        out=children["o_proj"],
        query_norm=fast_norm(children["q_norm"]) if norms else None,
        key_norm=fast_norm(children["k_norm"]) if norms else None,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        width=width,
        scale=module.scaling,
        softcap=getattr(module, "attn_logit_softcapping", None),
        sinks=getattr(module, "sinks", None),
        window=window,
    )


def _side_by_side(layers: Sequence[nn.Module], loras: Loras, copies: bool) -> Map:
    together = packed_together(layers) if copies else None

    def project(x: torch.Tensor) -> torch.Tensor:
        if together is None or loras.at_work or len(x) == 1:  # oneDNN's layout is slower for one row
            return torch.cat([layer(x) for layer in layers], -1)
        return together(x)

    return project


def _mlp(module: Any) -> Map:
    children = dict(module.named_children())
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        gate, up, down, act = (children[name] for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
        return lambda x: down(act(gate(x)).mul_(up(x)))

    def compute(x: torch.Tensor) -> torch.Tensor:
        found = module(x[None])
        return (found[0] if isinstance(found, tuple) else found)[0]

    return compute


def fast_norm(module: Any) -> Map:
    """The same with fewer operations where it is an RMS norm, found by trying; else the module."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or not isinstance(epsilon, float):
        return module
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    with torch.no_grad():
        expected = module(x)
        for offset, wide in ((0.0, False), (1.0, True), (0.0, True)):
            norm = _rms_norm(weight, epsilon, offset, wide)
            if torch.allclose(norm(x).float(), expected.float(), rtol=1e-5, atol=1e-6):
                return norm
    return module


def _rms_norm(weight: torch.Tensor, epsilon: float, offset: float, wide: bool) -> Map:
    """`wide`: rounded once, at the end."""
    per_number = len(weight) ** -1

    def norm(x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().mul_(per_number).add_(epsilon).rsqrt_()
        factor = weight + offset if offset else weight
        if wide:
            return (exact * scale).mul_(factor.float()).to(x.dtype)
        return (exact * scale).to(x.dtype).mul_(factor)

    return norm
