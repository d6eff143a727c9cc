"""Sections of generation: sampling, and what `swift infer` does with it."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class GenerationOptions:
    max_new_tokens: int | None = option(low=1, aliases=("max_tokens",))
    temperature: float | None = option(low=0)
    top_k: int | None = option()
    top_p: float | None = option(low=0, high=1)
    min_p: float | None = option(low=0, high=1)
    repetition_penalty: float | None = option(low=0)
    num_beams: int = option(1, low=1)
    stop_words: tuple[str, ...] = option((), aliases=("stop",))
    logprobs: bool = option(False)
    top_logprobs: int | None = option(low=1, high=20)
    seed: int = option(42)


@dataclass(frozen=True)
class InferOptions:
    stream: bool | None = option()
    result_path: str | None = option(aliases=("result_dir",))
    write_batch_size: int = option(1000, low=1)
    val_dataset_sample: int | None = option(low=1)
    load_data_args: bool = option(False)
    prompt: str | None = option(aliases=("query",))
    images: tuple[str, ...] = option((), aliases=("image",))
    videos: tuple[str, ...] = option((), aliases=("video",))
    audios: tuple[str, ...] = option((), aliases=("audio",))
