"""Rows one behind the other in a single flat row, and attention that keeps them apart.

Promises: a row's tokens see what they would see alone: earlier tokens of the same row, within the sliding window where
the layer has one. No mask is built but for rows longer than the window. Knows nothing of attention sinks, position
biases or bidirectional layers: asked for them it raises, and the check at the start of a run lets the plain path do it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swift.train.losses import IGNORED

NAME = "swift_segments"
FLATTENED = ("input_ids", "attention_mask", "labels", "loss_scale")
KINDS = "token_type_ids"  # the end of the names of tensors that say of each token what it is
FLASH = ("flash_attention_2", "flash_attention_3")


def register(opaque: bool = False) -> None:
    """Make the attention known to transformers, with sdpa's masks for batches that aren't flat. `opaque`: compiled
    layers call it as it is; compiled itself, it would be made anew for each batch's lengths.
    """
    AttentionInterface.register(NAME, torch.compiler.disable(attention) if opaque else attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


class Unsupported(Exception):
    """This model's attention asks for something that isn't known here."""


class Segments:
    """The rows' lengths; one object goes through all layers of a batch."""

    def __init__(self, sizes: list[int]):
        self.sizes = sizes
        self._bands: dict[tuple[int, int], torch.Tensor] = {}
        self._starts: torch.Tensor | None = None

    def band(self, length: int, window: int, device: torch.device) -> torch.Tensor:
        """bool [length, length]: the last `window` tokens up to oneself."""
        key = (length, window)
        if key not in self._bands:
            ones = torch.ones(length, length, dtype=torch.bool, device=device)
            self._bands[key] = ones.tril().triu(1 - window)
        return self._bands[key].to(device)

    def starts(self, device: torch.device) -> torch.Tensor:
        """int32 [rows + 1]: where each row begins, and the end."""
        if self._starts is None:
            self._starts = F.pad(torch.tensor(self.sizes).cumsum(0), (1, 0)).to(torch.int32).to(device)
        return self._starts.to(device)


class Flat(NamedTuple):
    """A batch without padding. Tensors int64 [1, tokens] but `loss_scale`, float or None. `more`: what else a model is
    given: media as they are, kinds of tokens [1, tokens]."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    loss_scale: torch.Tensor | None
    segments: Segments
    more: dict[str, Any]


def first_tokens(mask: torch.Tensor) -> torch.Tensor:
    """bool [B, T]: the first token of each row of an attention mask; nothing stands before it to predict it."""
    return (mask != 0) & (mask.cumsum(1) == 1)


def flatten(inputs: dict[str, Any]) -> Flat:
    """The tokens of a padded batch (`input_ids`, `attention_mask`, `labels` [B, T]) one behind the other."""
    mask = inputs["attention_mask"]
    kept = mask != 0
    labels = inputs["labels"].masked_fill(first_tokens(mask), IGNORED)
    weights = inputs.get("loss_scale")
    return Flat(
        inputs["input_ids"][kept][None],
        (mask.cumsum(1) - 1)[kept][None],
        labels[kept][None],
        None if weights is None else weights[kept][None],
        Segments(kept.sum(1).tolist()),
        {
            name: value[kept][None] if name.endswith(KINDS) else value
            for name, value in inputs.items()
            if name not in FLATTENED
        },
    )


def attention_arguments(segments: Segments, implementation: str, device: torch.device) -> dict[str, Any]:
    """What the model's forward passes on to attention, so that rows stay apart.

    transformers takes a mask of four dimensions as finished, so with this one it builds none; ours doesn't look at it.
    """
    if implementation not in FLASH:
        return {"segments": segments, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}
    starts, longest = segments.starts(device), max(segments.sizes)
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [1, heads, tokens, d], `key` and `value` [1, fewer heads, tokens, d] -> [1, tokens, heads, d].

    A batch of any other kind, which comes without `segments`, is attended to by transformers' sdpa.
    """
    if segments is None and softcap is not None:
        mask = None if attention_mask is None else attention_mask[:, :, None]
        return _capped(query, key, value, mask, scaling, dropout, softcap).transpose(1, 2), None
    if segments is None:
        extra = {"is_causal": is_causal, "position_bias": position_bias, **kwargs}
        extra = {name: value for name, value in extra.items() if value is not None}
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **extra
        )
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal or s_aux is not None or position_bias is not None:
        raise Unsupported("its attention isn't plainly causal")
    if _takes_kernel(query, value, softcap, dropout):
        return _varlen(query, key, value, scaling, sliding_window, segments), None
    # split, not slices: its backward pass is one concatenation instead of a tensor of zeros per row
    parts = zip(*(tensor.split(segments.sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for q, k, v in parts:
        length = q.shape[2]
        banded = sliding_window is not None and length > sliding_window
        mask = segments.band(length, sliding_window, q.device) if banded else None
        if softcap is None:
            out = _dense(q, k, v, mask, scaling, dropout)
        else:
            out = _capped(q, k, v, mask, scaling, dropout, softcap)
        outputs.append(out.transpose(1, 2))
    # a copy would be kept beside the original for the backward pass
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _dense(q, k, v, mask, scaling, dropout) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _capped(q, k, v, mask, scaling, dropout, softcap: float) -> torch.Tensor:
    """Scores squeezed by tanh before the softmax, which no kernel of torch does; as transformers' eager attention."""
    heads, groups, length = q.shape[1], k.shape[1], q.shape[2]
    q = q.unflatten(1, (groups, heads // groups))
    scores = (q @ k.unsqueeze(2).transpose(-1, -2)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    seen = mask if mask is not None else torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)  # not -inf: a padding token sees nothing
    shares = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    shares = F.dropout(shares, dropout) if dropout else shares
    return (shares @ v.unsqueeze(2)).flatten(1, 2)


def _takes_kernel(query: torch.Tensor, value: torch.Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether torch's flash attention for rows of different lengths does it: one launch instead of one per row."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or softcap is not None or dropout:
        return False
    return query.shape[-1] == value.shape[-1] <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _varlen(query, key, value, scaling, window: int | None, segments: Segments) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = segments.starts(query.device), max(segments.sizes)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    reach = (-1 if window is None else window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=reach, enable_gqa=grouped)
    return out[None]
