"""Optimizers by transformers' names: what each needs, said before a weight is loaded.

Promises: an optimizer that can't work here is an error with what to type instead; so is an argument that it doesn't
read. The optimizers themselves are torch's and those of the libraries named here. Muon is torch's (`swift.train.muon`).
"""

from __future__ import annotations

import copy
import difflib
import importlib.util

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from swift.config.commands import SftConfig
from swift.errors import MissingPackage, UsageError
from swift.train import muon
from swift.train.sharding import PLAIN

# Optimizers that train linear layers' weights in a space of low rank.
LOW_RANK = ("galore_", "apollo_")
# beginnings of names -> (module, what to pip install)
LIBRARIES = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_4bit": ("torchao", "torchao"),
}
BITSANDBYTES = ("8bit", "32bit", "bnb", "ademamix")
# Two values that any argument of an optimizer takes.
PROBES = ("7", "3")


def check_name(config: SftConfig) -> None:
    """UsageError for a name that isn't known or options that don't go with it, MissingPackage for its library."""
    training = config.training
    name, known = training.optim, [muon.NAME, *(member.value for member in OptimizerNames)]
    if name not in known:
        near = {*difflib.get_close_matches(name, known, 3), *(each for each in known if each.startswith(name[:4]))}
        raise UsageError(f"no such value: {name}", where="--optim", fix=f"one of {', '.join(sorted(near) or known)}")
    if name == muon.NAME:
        muon.settings_of(training.optim_args)
    low_rank = name.startswith(LOW_RANK)
    if training.optim_target_modules and not low_rank:
        raise UsageError(f"--optim {name} projects nothing", where="--optim_target_modules", fix="leave it out")
    if low_rank and config.tuner.tuner_type != "full":
        why = "projects whole matrices, and with adapters none of them trains"
        raise UsageError(f"--optim {name} {why}", where="--optim", fix=f"--tuner_type full, or {PLAIN}")
    if name.endswith("layerwise") and (training.gradient_accumulation_steps or 1) > 1:
        why = "steps in the backward pass, so gradients can't be accumulated"
        fix = f"--gradient_accumulation_steps 1, or --optim {name.removesuffix('_layerwise')}"
        raise UsageError(f"--optim {name} {why}", where="--gradient_accumulation_steps", fix=fix)
    if name.startswith("galore_adamw_8bit") and training.use_cpu:
        raise UsageError(f"--optim {name} needs a GPU", where="--optim", fix="--optim galore_adamw")
    library = _library(name)
    if library is not None and importlib.util.find_spec(library[0]) is None:
        raise MissingPackage(f"--optim {name} needs {library[1]}", fix=f"pip install {library[1]}, or {PLAIN}")


def _library(name: str) -> tuple[str, str] | None:
    for start, library in LIBRARIES.items():
        if name.startswith(start):
            return library
    return ("bitsandbytes", "bitsandbytes") if any(mark in name for mark in BITSANDBYTES) else None


def projected(config: SftConfig) -> list[str] | str | None:
    """transformers' `optim_target_modules`: what an optimizer of low rank projects; None for others."""
    training = config.training
    if not training.optim.startswith(LOW_RANK):
        return None
    modules = list(training.optim_target_modules)
    return "all-linear" if modules in ([], ["all-linear"]) else modules


def check_optimizer(args: TrainingArguments) -> None:
    """UsageError for an optimizer that can't be made here, or arguments that it doesn't take or doesn't read."""
    where = f"--optim {args.optim.value}"
    given = [part.partition("=") for part in (args.optim_args or "").replace(" ", "").split(",") if part]
    for name, equals, value in given:
        if not (equals and value):
            raise UsageError(f"{name} has no value", where="--optim_args", fix="--optim_args name=1,other=2")
    try:
        made = _made(args, args.optim_args)
    except (ValueError, ImportError, AssertionError, NotImplementedError) as error:
        raise UsageError(str(error).strip().splitlines()[0], where=where, fix=PLAIN) from error
    for name, _, _ in given:
        others = [part for part in given if part[0] != name]
        if all(_same(args, made, [*others, (name, "=", probe)]) for probe in PROBES):
            raise UsageError(f"{where} doesn't read {name}", where="--optim_args", fix=f"leave out {name}")


def _same(args: TrainingArguments, made: str, parts: list[tuple[str, str, str]]) -> bool:
    try:
        return _made(args, ",".join("".join(part) for part in parts)) == made
    except (ValueError, TypeError, KeyError):
        return False  # it looked at the value


def _made(args: TrainingArguments, optim_args: str | None) -> str:
    """The optimizer's class and its arguments, in words, for a model of one layer."""
    args = copy.copy(args)
    args.optim_args = optim_args
    if isinstance(args.optim_target_modules, list):
        args.optim_target_modules = "all-linear"
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, nn.ModuleDict({"layer": nn.Linear(2, 2)}))
    return f"{kind} { {name: _shown(value) for name, value in settings.items()} }"


def _shown(value: object) -> object:
    """Without addresses and tensors: groups of parameters as their settings."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {name: _shown(item) for name, item in value.items() if name != "params"}
    return type(value).__name__ if isinstance(value, torch.Tensor) else value
