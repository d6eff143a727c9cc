"""The section that says which rows to use and how to mix, split and check them."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class DataOptions:
    dataset: tuple[str, ...] = option((), aliases=("train_dataset", "custom_train_dataset_path"))
    val_dataset: tuple[str, ...] = option((), aliases=("custom_val_dataset_path",))
    dataset_dir: str | None = option()
    split_dataset_ratio: float = option(0.0, low=0.0, high=1.0, aliases=("dataset_test_ratio", "val_size"))
    columns: dict | None = option()
    dataset_shuffle: bool = option(True)
    val_dataset_shuffle: bool = option(False)
    interleave_prob: tuple[float, ...] = option((), aliases=("interleave_probs",))
    stopping_strategy: str = option("first_exhausted", choices=("first_exhausted", "all_exhausted"))
    data_seed: int | None = option()
    strict: bool = option(False)
    max_drop_ratio: float | None = option(low=0.0, high=1.0)
    model_name: tuple[str, ...] = option(())
    model_author: tuple[str, ...] = option(())
    custom_dataset_info: tuple[str, ...] = option(())


@dataclass(frozen=True)
class EncodingOptions:
    dataset_num_proc: int | None = option(low=1, aliases=("preprocess_num_proc", "preprocessing_num_workers"))
    load_from_cache_file: bool = option(True)


@dataclass(frozen=True)
class SupplyOptions:
    """How encoded rows reach the trainer."""

    cached_dataset: tuple[str, ...] = option(())
    cached_val_dataset: tuple[str, ...] = option(())
    streaming: bool = option(False)
    shuffle_buffer_size: int = option(1000, low=1, aliases=("buffer_size",))
    lazy_tokenize: bool = option(False)


@dataclass(frozen=True)
class PreviewOptions:
    show_rows: int = option(3, low=0, aliases=("show", "num_rows_shown"))
    json: bool = option(False)
