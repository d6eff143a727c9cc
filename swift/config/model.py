"""Sections that say which weights to use and how to load them."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option

DTYPES = ("bfloat16", "float16", "float32")
# what can quantize while loading, and the bits that it has
ON_LOAD = {"bnb": (8, 4), "torchao": (8, 4), "fp8": (8,)}
# checkpoints in these formats train as plain weights, as they are loaded for it
DEQUANTIZED = ("fp8", "mxfp4", "compressed-tensors")


@dataclass(frozen=True)
class ModelOptions:
    model: str | None = option(aliases=("model_id_or_path", "model_name_or_path"))
    adapters: tuple[str, ...] = option((), aliases=("ckpt_dir", "adapter_name_or_path"))
    model_type: str | None = option()
    model_revision: str | None = option(aliases=("revision",))
    use_hf: bool = option(False)
    hub_token: str | None = option()
    model_dir: str | None = option(aliases=("models_dir",))
    torch_dtype: str | None = option(
        choices=DTYPES,
        aliases=("dtype",),
        values={
            "bf16": "bfloat16",
            "fp16": "float16",
            "half": "float16",
            "fp32": "float32",
            "float": "float32",
            "auto": None,
        },
    )
    attn_impl: str | None = option(
        choices=("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"),
        values={"flash_attn": "flash_attention_2", "flash_attention": "flash_attention_2", "auto": None},
    )
    experts_impl: str | None = option(choices=("eager", "batched_mm", "grouped_mm"))
    device_map: str | None = option()
    max_memory: dict | None = option()
    max_model_len: int | None = option(low=1)
    rope_scaling: str | None = option()
    new_special_tokens: tuple[str, ...] = option(())
    trust_remote_code: bool = option(False)
    check_model: bool = option(True)
    load_args: bool = option(True)


@dataclass(frozen=True)
class QuantizationOptions:
    quant_method: str | None = option(
        choices=("bnb", "hqq", "eetq", "quanto", "fp8", "awq", "gptq", "gptq_v2", "torchao", "gguf")
    )
    quant_bits: int | None = option(choices=(2, 3, 4, 5, 6, 8, 16, 32), aliases=("quantization_bit",))
    bnb_4bit_compute_dtype: str | None = option(
        choices=DTYPES, values={"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    )
    bnb_4bit_quant_type: str = option("nf4", choices=("nf4", "fp4"))
    bnb_4bit_use_double_quant: bool = option(True)
    bnb_4bit_quant_storage: str | None = option()
