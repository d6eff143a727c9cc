"""The section of every command that has an engine: which one, how much it computes at once, and on what weights."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class EngineOptions:
    infer_backend: str = option(
        "pt", choices=("pt", "vllm", "sglang", "lmdeploy", "http", "fake"), values={"transformers": "pt", "hf": "pt"}
    )
    max_batch_size: int = option(8, low=1)
    merge_lora: bool = option(False)
