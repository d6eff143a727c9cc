"""Sections of the commands that advise: what to check, what to plan for, and which environments to make."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class DoctorOptions:
    model: str | None = option(aliases=("model_id_or_path", "model_name_or_path"))
    dataset: tuple[str, ...] = option((), aliases=("train_dataset",))
    adapters: tuple[str, ...] = option((), aliases=("ckpt_dir",))
    model_dir: str | None = option(aliases=("models_dir",))
    dataset_dir: str | None = option()
    output_dir: str | None = option()
    use_hf: bool = option(False)
    network: bool = option(False)
    json: bool = option(False)


@dataclass(frozen=True)
class PlanOptions:
    gpu: tuple[str, ...] = option((), aliases=("device", "machine"))
    rows: int | None = option(low=1, aliases=("num_rows",))
    row_tokens: int | None = option(low=1)
    context: int | None = option(low=8)
    max_batch_size: int = option(8, low=1)
    json: bool = option(False)


@dataclass(frozen=True)
class EnvOptions:
    action: tuple[str, ...] = option(())
    python: str | None = option()
    env_dir: str | None = option()
    device: str | None = option(choices=("cpu", "cuda"))
    force: bool = option(False)
    json: bool = option(False)
