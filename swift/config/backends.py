"""Options of the engines that are servers of their own: where they are, and what they are started with.

The names are ms-swift's; what isn't given is the server's own default. `FLAGS` says how they reach the server.
"""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class BackendOptions:
    engine_python: str | None = option()
    engine_start_timeout: float = option(1800.0, low=1)
    base_url: str | None = option()
    engine_api_key: str | None = option()

    vllm_gpu_memory_utilization: float | None = option(low=0, high=1, aliases=("gpu_memory_utilization",))
    vllm_tensor_parallel_size: int | None = option(low=1, aliases=("tensor_parallel_size",))
    vllm_pipeline_parallel_size: int | None = option(low=1, aliases=("pipeline_parallel_size",))
    vllm_data_parallel_size: int | None = option(low=1)
    vllm_enable_expert_parallel: bool | None = option()
    vllm_max_num_seqs: int | None = option(low=1, aliases=("max_num_seqs",))
    vllm_max_model_len: int | None = option(low=1)
    vllm_disable_custom_all_reduce: bool | None = option(aliases=("disable_custom_all_reduce",))
    vllm_enforce_eager: bool | None = option(aliases=("enforce_eager",))
    vllm_limit_mm_per_prompt: dict | None = option(aliases=("limit_mm_per_prompt",))
    vllm_max_lora_rank: int | None = option(low=1)
    vllm_enable_prefix_caching: bool | None = option()
    vllm_quantization: str | None = option()
    vllm_disable_cascade_attn: bool | None = option()
    vllm_mm_processor_cache_gb: float | None = option(low=0)
    vllm_speculative_config: dict | None = option()
    vllm_engine_kwargs: dict | None = option()

    sglang_tp_size: int | None = option(low=1)
    sglang_pp_size: int | None = option(low=1)
    sglang_dp_size: int | None = option(low=1)
    sglang_ep_size: int | None = option(low=1)
    sglang_mem_fraction_static: float | None = option(low=0, high=1)
    sglang_context_length: int | None = option(low=1)
    sglang_disable_cuda_graph: bool | None = option()
    sglang_quantization: str | None = option()
    sglang_kv_cache_dtype: str | None = option()
    sglang_enable_dp_attention: bool | None = option()
    sglang_disable_custom_all_reduce: bool | None = option()
    sglang_speculative_algorithm: str | None = option()
    sglang_speculative_num_steps: int | None = option(low=1)
    sglang_speculative_eagle_topk: int | None = option(low=1)
    sglang_speculative_num_draft_tokens: int | None = option(low=1)
    sglang_engine_kwargs: dict | None = option()

    lmdeploy_tp: int | None = option(low=1)
    lmdeploy_session_len: int | None = option(low=1)
    lmdeploy_cache_max_entry_count: float | None = option(low=0, high=1)
    lmdeploy_quant_policy: int | None = option(choices=(0, 4, 8))
    lmdeploy_vision_batch_size: int | None = option(low=1)
    lmdeploy_engine_kwargs: dict | None = option()
