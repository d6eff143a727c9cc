"""Rows that are encoded while training goes on (`--streaming`, `--lazy_tokenize`): what else that allows.

Promises: a pure function from a config to a config; what needs all rows beforehand is refused with a way out.
"""

from __future__ import annotations

from swift.config.commands import SftConfig
from swift.errors import UsageError


def decide_supply(config: SftConfig) -> SftConfig:
    """UsageError for options that don't go together."""
    supply = config.supply
    if not supply.streaming and config.given("shuffle_buffer_size"):
        raise UsageError("only a stream has a buffer", where="--shuffle_buffer_size", fix="add --streaming true")
    if not (supply.streaming or supply.lazy_tokenize):
        return config
    flag = "--streaming true" if supply.streaming else "--lazy_tokenize true"
    for wrong, what, fix in (
        (config.head.task_type != "causal_lm", "works where a model learns to write", "leave it out"),
        (supply.cached_dataset, "has nothing to do: a cached data set is encoded already", "leave it out"),
        (config.training.group_by_length, "can't group rows by lengths that it doesn't know", "leave out one of them"),
        (config.training.probe, "doesn't know the longest batch that --probe tries", "leave out --probe"),
    ):
        if wrong:
            raise UsageError(what, where=flag, fix=fix)
    return _streaming(config, flag) if supply.streaming else _lazy(config, flag)


def _streaming(config: SftConfig, flag: str) -> SftConfig:
    if config.data.split_dataset_ratio:
        what = "can't hold out a share of rows whose number it doesn't know"
        raise UsageError(what, where=flag, fix="name rows with --val_dataset in place of --split_dataset_ratio")
    for name in ("save_strategy", "eval_strategy"):
        if config.value(name) == "epoch":
            raise UsageError("has no epochs", where=flag, fix=f"--{name} steps")
    return config


def _lazy(config: SftConfig, flag: str) -> SftConfig:
    if config.training.packing:
        raise UsageError("can't pack rows of unknown length", where=flag, fix="--streaming true packs as it reads")
    if config.chat.truncation_strategy == "split":
        what = "can't tell how many rows a long one is split into"
        raise UsageError(what, where=flag, fix="--streaming true, or --truncation_strategy right, left or delete")
    return config
