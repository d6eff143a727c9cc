"""The section of `swift export`."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class ExportOptions:
    output_dir: str | None = option(aliases=("merged_dir",))
    exist_ok: bool = option(False, aliases=("overwrite_output_dir",))
    merge_lora: bool = option(False)
    to_cached_dataset: bool = option(False)
    max_shard_size: str = option("5GB")
    merge_dtype: str | None = option(choices=("float32", "bfloat16", "float16"))
