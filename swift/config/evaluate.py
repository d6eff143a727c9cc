"""The section of `swift eval`: which benchmarks, on what data, by which backend, and where the report goes."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option

BACKENDS = ("Native", "OpenCompass", "EvalScope")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What training asks of its checkpoints: the options of `swift eval` of the same names."""

    eval_dataset: tuple[str, ...] = option(())
    eval_limit: int | None = option(low=1)
    eval_dataset_args: dict | None = option()
    eval_generation_config: dict | None = option()
    local_dataset: str | None = option()
    allow_code_execution: bool = option(False)


@dataclass(frozen=True)
class EvaluateOptions:
    eval_dataset: tuple[str, ...] = option(())
    eval_limit: int | None = option(low=1)
    eval_backend: str = option("Native", choices=BACKENDS, values={name.lower(): name for name in BACKENDS})
    eval_dataset_args: dict | None = option()
    eval_generation_config: dict | None = option()
    eval_num_proc: int = option(16, low=1)
    eval_output_dir: str = option("eval_output")
    eval_url: str | None = option()
    api_key: str | None = option()
    local_dataset: str | None = option()
    allow_code_execution: bool = option(False)
    extra_eval_args: dict | None = option()
    compare: tuple[str, ...] = option(())
    eval_python: str | None = option()
