"""The section of `swift export`."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import SIZE, option


@dataclass(frozen=True)
class ExportOptions:
    output_dir: str | None = option(aliases=("merged_dir",))
    exist_ok: bool = option(False, aliases=("overwrite_output_dir",))
    merge_lora: bool = option(False)
    merge_quantized_base: bool = option(False)
    to_cached_dataset: bool = option(False)
    to_peft_format: bool = option(False)
    max_shard_size: str = option("5GB", pattern=SIZE)
    push_to_hub: bool = option(False)
    hub_model_id: str | None = option()
    hub_private_repo: bool = option(False)
    commit_message: str | None = option()
    merge_dtype: str | None = option(choices=("float32", "bfloat16", "float16"))
    gguf_type: str | None = option(
        choices=(
            *("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
            *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
        )
    )
    to_ollama: bool = option(False)
    group_size: int | None = option(low=1, aliases=("q_group_size",))
    quant_n_samples: int | None = option(low=1)
    quant_search: bool = option(False)
    max_ppl_increase: float | None = option(low=0)
