"""A model as advice needs it: its config (of a directory or a GGUF file), its exact size where the weights are
there, its dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift.advise.layers import Shape
from swift.advise.memory import ITEM
from swift.advise.shape import shape_of
from swift.errors import ModelFileError
from swift.hub import LocalModel, ModelFiles, check_model_files

# GGUF key (after the architecture's name) -> config.json's
GGUF_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
GGUF_TYPES = {
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
    "deepseek2": "deepseek_v3",
    "phi3": "phi3",
}
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# what config.json's quantization does to a linear layer's weight: bits per value, scales included
QUANT_BITS = {
    "fp8": 8.0,
    "mxfp4": 4.25,
    "bitsandbytes": 4.5,
    "gptq": 4.25,
    "awq": 4.25,
    "compressed-tensors": 8.0,
    "hqq": 4.5,
}


@dataclass(frozen=True)
class ModelFacts:
    """`quantization`: the checkpoint's own method, None for plain weights. `stored_bytes`: size of its weights in
    memory as they are, when quantized. `files` is None when the weights aren't there."""

    name: str
    config: Mapping[str, Any]
    shape: Shape
    quantization: str | None
    stored_bytes: int | None
    files: ModelFiles | None
    family: str

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint states."""
        text = self.config.get("text_config") or self.config
        stated = (
            text.get("dtype") or text.get("torch_dtype") or self.config.get("dtype") or self.config.get("torch_dtype")
        )
        stated = str(stated or "bfloat16").removeprefix("torch.")
        return stated if stated in ITEM else "bfloat16"


def model_facts(model: LocalModel) -> ModelFacts:
    """Read config and headers. ModelFileError when the config is missing or tells no size; missing weights are no
    error.
    """
    try:
        files = check_model_files(model.path, need_tokenizer=False)
    except ModelFileError:
        if model.is_gguf:
            raise
        files = None
    known = files or check_model_files(model.path, need_weights=False, need_tokenizer=False)
    config = gguf_config(known) if known.is_gguf else known.config
    method = None if known.is_gguf else _method(known.quantization)
    stored = files.parameters if files and method is None and (files.is_gguf or set(files.dtypes) <= FLOATS) else None
    shape = shape_of(config, stored or None)
    stored_bytes = None
    if method is not None:
        stored_bytes = files.total_bytes if files else _quantized_bytes(shape, method, known.quantization or {})
    family = model.entry.type.title if model.entry is not None else shape.model_type
    return ModelFacts(model.name, config, shape, method, stored_bytes, files, family)


def _method(quantization: Mapping[str, Any] | None) -> str | None:
    if not quantization:
        return None
    method = quantization.get("quant_method")
    if method is None and (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method) if method else None


def _quantized_bytes(shape: Shape, method: str, quantization: Mapping[str, Any]) -> int:
    """Weights of a quantized checkpoint from its config alone: linear layers in its bits, the rest in 16."""
    bits = quantization.get("bits") or quantization.get("w_bit")
    each = (bits + 0.25) / 8 if isinstance(bits, int) else QUANT_BITS.get(method, 8.0) / 8
    linear = min(shape.linear_parameters, shape.parameters)
    return int(linear * each) + (shape.parameters - linear) * 2


def gguf_config(files: ModelFiles) -> dict[str, Any]:
    """What a GGUF file's metadata says, in config.json's words."""
    metadata = files.gguf.metadata
    kind = str(metadata.get("general.architecture", "llama"))
    config: dict[str, Any] = {"model_type": GGUF_TYPES.get(kind, kind)}
    for key, name in GGUF_KEYS.items():
        value = metadata.get(f"{kind}.{key}")
        if isinstance(value, int):
            config[name] = value
    tokens = metadata.get("tokenizer.ggml.tokens")  # an array: the header reader keeps its length
    if isinstance(tokens, int):
        config.setdefault("vocab_size", tokens)
    config["dtype"] = "bfloat16"
    untied = shape_of({**config, "tie_word_embeddings": False}).counted
    tied = shape_of({**config, "tie_word_embeddings": True}).counted
    config["tie_word_embeddings"] = abs(files.parameters - tied) < abs(files.parameters - untied)
    return config
