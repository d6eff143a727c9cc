"""What the fast path has to know of a causal language model: its decoder, its head, and whether its rows may be joined.

Promises: every refusal is a sentence for the user. Reads transformers' own names (`final_logit_softcapping`,
`logit_scale`, `layer_types` ...); what they don't tell, the check at the start of a run finds out.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from swift.train.lean import segments
from swift.train.lean.head import Head, head_loss

# the argument of transformers' masks by which files of models let the tokens of one image see each other
BOTH_WAYS = "block_sequence_ids"
ROW_KINDS = {"full_attention", "sliding_attention"}


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model below peft's."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_of(base: nn.Module) -> nn.Module | None:
    """The model without its head, or None."""
    decoder = getattr(base, getattr(base, "base_model_prefix", "") or "-", None)
    return decoder if isinstance(decoder, nn.Module) and decoder is not base else None


def text_of(base: nn.Module) -> nn.Module | None:
    """The transformers model whose attention reads the rows: `base` itself, or the language model of one that sees or
    hears; None where that can't be told."""
    if base.config.get_text_config() is base.config:
        return base
    decoder = base.get_decoder()
    return decoder if getattr(decoder, "config", None) is base.config.get_text_config() else None


def positions_of(base: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The model's own places of a padded batch's tokens, int64 [axes, B, T], where media stand in space and time: one
    number for each axis; None where tokens are just counted."""
    decoder = decoder_of(base)
    own = getattr(decoder, "compute_3d_position_ids", None)
    if own is None:
        return None
    known = {"inputs_embeds": None, "past_key_values": None} | dict(inputs)
    names = inspect.signature(own).parameters
    return own(**{name: known.get(name) for name in names})


def refusal(base: nn.Module) -> str | None:
    """Why neither joined rows nor a head of our own are for this model; None when they may be."""
    config = getattr(base, "config", None)
    if config is None:
        return "it is no transformers model"
    if config.get_text_config() is not config and text_of(base) is None:
        return "its language model isn't a module of its own"
    if len(set((getattr(base, "hf_device_map", None) or {"": 0}).values())) > 1:
        return "its layers are spread over devices"
    return None


def joining_refusal(base: nn.Module) -> str | None:
    """Why rows can't stand one behind the other in this model."""
    text = text_of(base)
    config = text.config
    if text is not base and BOTH_WAYS in inspect.getsource(sys.modules[type(base).__module__]):
        return "its attention goes both ways within an image"
    if not base._supports_attention_backend:
        return "its attention can't be exchanged"
    kinds = set(getattr(config, "layer_types", None) or ()) - ROW_KINDS
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if text._is_stateful or any(isinstance(module, nn.Conv1d) for module in text.modules()):
        return "its layers carry a state from token to token"
    if config._attn_implementation not in ("sdpa", "eager", segments.NAME, *segments.FLASH):
        return f"it was loaded with attn_impl {config._attn_implementation}"
    return None


def head_of(base: nn.Module) -> Head | str:
    """The head, or why it can't be computed on its own."""
    module = base.get_output_embeddings()
    if module is None or decoder_of(base) is None:
        return "its head isn't a module of its own"
    config = base.config.get_text_config()
    scale = 1.0
    for name, power in (("logit_scale", 1), ("logits_scaling", -1), ("lm_head_multiplier", 1)):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)):
            scale *= value**power
    return Head(module, scale, getattr(config, "final_logit_softcapping", None))


def router_loss_of(base: nn.Module) -> Callable[..., torch.Tensor] | None:
    """The model file's own function of the routers' balance loss."""
    return getattr(sys.modules[type(base).__module__], "load_balancing_loss_func", None)


def install(base: nn.Module, head: Head) -> None:
    """Give this instance's forward an argument `lean`: with it, the head's loss at given positions is computed instead
    of logits. Wrappers (peft, DDP, autocast) hand it through.
    """
    uninstall(base)
    plain = base.forward

    @functools.wraps(plain)
    def forward(*args: Any, lean: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        if lean is None:
            return plain(*args, **kwargs)
        return _forward(base, head, lean, kwargs)

    forward.plain = plain
    base.forward = forward


def uninstall(base: nn.Module) -> None:
    if hasattr(base.__dict__.get("forward"), "plain"):
        del base.forward


def _forward(base: nn.Module, head: Head, lean: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`lean`: positions int64 [N] in the flat row, targets int64 [N], weights float [N] or None, smoothing."""
    outputs = decoder_of(base)(**kwargs)
    hidden = outputs.last_hidden_state[0].index_select(0, lean["positions"])
    total, hits = head_loss(head, hidden, lean["targets"], lean["weights"], lean["smoothing"])
    found = {"total": total, "hits": hits}
    if kwargs.get("output_router_logits"):
        config = base.config
        found["aux_loss"] = router_loss_of(base)(
            outputs.router_logits, base.num_experts, config.num_experts_per_tok, None
        )
    return found
