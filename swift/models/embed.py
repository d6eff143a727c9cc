"""A text as a vector: the last hidden state of its last token, of length 1.

Promises: the same vector in training and in use, whatever the padding. The pooling is that of last-token embedding
models (E5-Mistral, arXiv:2401.00368; Qwen3-Embedding).
"""

from __future__ import annotations

import inspect

import torch
from torch.nn import functional as F


def last_hidden(model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """float32 [texts, hidden] of a language model, for `input_ids` and `attention_mask` int64 [texts, length]."""
    extra = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    output = model(
        input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False, **extra
    )
    hidden = output.hidden_states[-1]
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(dim=1)
    return F.normalize(hidden[torch.arange(len(hidden), device=hidden.device), last].float(), dim=-1)


def takes_logits_to_keep(model) -> bool:
    """True when the model can compute the logits of chosen positions only."""
    inner = getattr(model, "module", model)  # inside DistributedDataParallel
    inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
