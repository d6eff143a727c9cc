"""A model that brings its own code: a small decoder as people publish it, written to a directory with its two files."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny

CONFIGURATION = """
from transformers import PretrainedConfig


class OwlConfig(PretrainedConfig):
    model_type = "owl_of_the_tests"

    def __init__(self, vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings = 256
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_owl import OwlConfig


class OwlBlock(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.index, self.heads = index, config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.up = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.down = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.first, self.second = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, x, mask, cache):
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class OwlPreTrainedModel(PreTrainedModel):
    config_class = OwlConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.1)


class OwlForCausalLM(OwlPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(OwlBlock(config, i) for i in range(config.num_hidden_layers))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, labels=None,
                use_cache=None, **kwargs):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        total = past + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = input_ids.new_ones(input_ids.shape[0], total)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
        seen = torch.ones(input_ids.shape[1], total, dtype=torch.bool, device=input_ids.device).tril(past)
        mask = seen & attention_mask[:, None, None, :].bool()
        mask = mask | torch.eye(total, dtype=torch.bool, device=input_ids.device)[past:]
        x = self.embed(input_ids) + self.places(position_ids)
        for block in self.blocks:
            x = block(x, mask, past_key_values)
        logits = self.lm_head(x)
        loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs) if labels is not None else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
"""


def checkpoint(path: Path) -> Path:
    """The directory, with random weights made by the code in it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir(parents=True)
    (path / "configuration_owl.py").write_text(CONFIGURATION)
    (path / "modeling_owl.py").write_text(MODELING)
    config = {
        "model_type": "owl_of_the_tests",
        "architectures": ["OwlForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_owl.OwlConfig",
            "AutoModelForCausalLM": "modeling_owl.OwlForCausalLM",
        },
        "vocab_size": 512,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(path, trust_remote_code=True), trust_remote_code=True
    )
    save_file({name: p.detach().clone() for name, p in made.named_parameters()}, path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    tiny.tokenizer().save_pretrained(path)
    return path
