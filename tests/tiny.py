"""Tiny tokenizers and 2-layer random checkpoints, built in about a second, that stand for real ones in tests.

Everything here is plain transformers: what swift does with these directories is compared with what transformers does.
"""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
CORPUS = [
    "You are a helpful assistant. Who are you? I am an assistant. The capital of France is Paris.",
    "What is one plus one? One plus one is two. Write a short story about a cat and a dog.",
    "你好，你是谁？我是一个人工智能助手。请介绍一下你自己。法国的首都是巴黎。",
    'def add(a, b):\n    return a + b\n\n# comments are read by people\n{"name": "get_weather", "arguments": {}}',
]


def tokenizer(chat_template: str | None = CHATML, size: int = 512):
    """A byte-level BPE tokenizer with ChatML's special tokens; eos is <|im_end|>, pad is <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.chat_template = chat_template
    return fast


def config(family: str = "llama", vocab_size: int = 512, **changes):
    """The transformers config of a 2-layer model: family is llama, qwen2, qwen3, qwen3_moe, gemma3_text, mistral ..."""
    from transformers import AutoConfig

    values = dict(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    if family.endswith("_moe"):
        values |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    return AutoConfig.for_model(family, **(values | changes))


def model(family: str = "llama", seed: int = 0, **changes):
    """A random model of that family in float32, with weights large enough that changes show in the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config(family, **changes), dtype=torch.float32).eval()


def checkpoint(path: Path, family: str = "llama", seed: int = 0, chat_template: str | None = CHATML, **changes) -> Path:
    """Save a tiny model and its tokenizer as a plain transformers directory and return it."""
    path.mkdir(parents=True, exist_ok=True)
    model(family, seed, **changes).save_pretrained(path)
    tokenizer(chat_template).save_pretrained(path)
    return path


def quantize_blocks(weight, block: int = 128):
    """(float8_e4m3fn weight, float32 scales [ceil(rows/block), ceil(cols/block)]): every block's largest value
    becomes 448.
    """
    import torch

    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block), -(-columns // block))
    quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            values = weight[part].float()
            scales[i, j] = values.abs().max().clamp(min=1e-12) / 448
            quantized[part] = (values / scales[i, j]).to(torch.float8_e4m3fn)
    return quantized, scales


def dequantize_blocks(quantized, scales, block: int = 128):
    """The float32 weight that a block-FP8 tensor stands for."""
    rows, columns = quantized.shape
    spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return quantized.float() * spread


def fp8_checkpoint(path: Path, family: str = "qwen3", seed: int = 0, block: int = 128, **changes) -> Path:
    """A tiny checkpoint in the layout of the block-FP8 releases: F8_E4M3 linear weights with `weight_scale_inv`
    beside them, embeddings, norms, routers and head in bfloat16, `quantization_config` in config.json. Experts have
    tensors of their own.
    """
    import json

    from safetensors.torch import load_file, save_file

    sizes = dict(hidden_size=256, intermediate_size=384, head_dim=32)
    if family.endswith("_moe"):
        sizes |= dict(moe_intermediate_size=128)
    checkpoint(path, family, seed, **(sizes | changes))
    tensors = {}
    skipped = ("embed_tokens", "lm_head", "norm", "mlp.gate.")
    for name, tensor in load_file(path / "model.safetensors").items():
        if tensor.ndim != 2 or any(part in name for part in skipped):
            tensors[name] = tensor.bfloat16()
        else:
            tensors[name], tensors[f"{name}_scale_inv"] = quantize_blocks(tensor, block)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((path / "config.json").read_text())
    values["dtype"] = "bfloat16"
    values["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head"],
    }
    (path / "config.json").write_text(json.dumps(values, indent=2))
    return path
