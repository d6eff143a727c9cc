"""Makes a loaded model trainable: LoRA and its variants through peft, or all parameters minus what is frozen.

Promises: an adapter is plain peft. With a bfloat16 or float16 base the adapter's weights are float32 (peft's own
default: an update of 1e-4 of a weight is lost in bfloat16's 8 bits) unless --lora_dtype says otherwise.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from swift.config.tuner import TunerOptions
from swift.errors import TrainingError, UsageError
from swift.models.bypass import has_own_gradients
from swift.models.heads import classifies, keep_float32
from swift.models.imports import libraries_only_where_used
from swift.models.parts import Parts, find_parts
from swift.models.quiet import quiet
from swift.models.targets import Targets, frozen_parts, leaves, resolve_targets, shortest

log = logging.getLogger("swift")

PLAIN_INITS = {"true": True, "false": False, "gaussian": "gaussian", "orthogonal": "orthogonal"}
# These take A and B out of the base weights. Loading such an adapter repeats that, which gives the same remainder
# since the decomposition is exact; pissa_niter_N is random, so its adapters would meet another base than they were
# trained on.
SVD_INITS = ("pissa", "olora")


def apply_tuner(model, tuner: TunerOptions, *, new_token_ids: Sequence[int] = ()):
    """`model` ready to train: a PeftModel for lora, the model itself for full.

    `new_token_ids`: rows of the embeddings that train too (tokens added to the vocabulary). UsageError for options
    that don't fit the model, TrainingError when nothing would train.
    """
    if tuner.tuner_type == "full":
        _full(model, tuner)
    else:
        model = _lora(model, tuner, new_token_ids)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("no parameter is left to train", fix="check the freeze and target options")
    return model


def _lora(model, tuner: TunerOptions, new_token_ids: Sequence[int]):
    from peft import get_peft_model

    given = [
        name
        for name in ("freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio")
        if getattr(tuner, name)
    ]
    given += [name for name in ("trainable_parameters", "trainable_parameters_regex") if getattr(tuner, name)]
    if given:
        fix = "--tuner_type full; with LoRA use --target_modules and --modules_to_save"
        raise UsageError("freezing applies to full-parameter training", where=f"--{given[0]}", fix=fix)
    targets = resolve_targets(model, tuner)
    if not targets.modules and not targets.parameters:
        raise UsageError("LoRA would reach no layer", where="--target_modules", fix="--target_modules all-linear")
    for note in targets.notes:
        log.info(note)
    config = lora_config(model, tuner, targets, new_token_ids)
    keep = tuner.lora_dtype in (None, "float32")
    with quiet(), libraries_only_where_used():
        tuned = get_peft_model(model, config, autocast_adapter_dtype=keep)
    if has_own_gradients(model):
        model.enable_input_require_grads()
    if keep and classifies(model):
        keep_float32(tuned)
    if tuner.lora_dtype is not None:
        _cast_trainable(tuned, getattr(torch, tuner.lora_dtype))
    return tuned


def lora_config(model, tuner: TunerOptions, targets: Targets, new_token_ids: Sequence[int] = ()):
    """The peft LoraConfig for these targets; names shortened to last components where that says the same."""
    from peft import LoraConfig, TaskType

    dropout = tuner.lora_dropout
    if targets.parameters:
        if tuner.use_dora:
            fix = "name layers without the experts, or leave out --use_dora"
            raise UsageError("DoRA can't adapt tensors of fused experts", where="--use_dora", fix=fix)
        if dropout:
            log.info("lora_dropout is 0 instead of %s: peft has none for parameters such as the experts'", dropout)
            dropout = 0.0
    kind = TaskType.SEQ_CLS if classifies(model) else TaskType.CAUSAL_LM
    return LoraConfig(
        task_type=kind,
        r=tuner.lora_rank,
        lora_alpha=int(tuner.lora_alpha) if float(tuner.lora_alpha).is_integer() else tuner.lora_alpha,
        lora_dropout=dropout,
        bias=tuner.lora_bias,
        use_rslora=tuner.use_rslora,
        use_dora=tuner.use_dora,
        init_lora_weights=_init_weights(model, tuner, targets),
        target_modules=shortest(targets.modules, (name for name, _ in model.named_modules())),
        target_parameters=shortest(targets.parameters, (name for name, _ in model.named_parameters())) or None,
        modules_to_save=_modules_to_save(model, tuner) or None,
        trainable_token_indices=_new_rows(model, tuner, new_token_ids) or None,
    )


def _init_weights(model, tuner: TunerOptions, targets: Targets) -> bool | str:
    text = tuner.init_weights.lower()
    if text in PLAIN_INITS:
        return PLAIN_INITS[text]
    if text not in SVD_INITS:
        lack = (
            "can't be repeated when the adapter is loaded (it is random)"
            if text.startswith("pissa_niter")
            else "is not known"
        )
        fix = f"one of {', '.join([*PLAIN_INITS, *SVD_INITS])}"
        raise UsageError(f"the initialization {text!r} {lack}", where="--init_weights", fix=fix)
    if getattr(model, "is_quantized", False) or targets.parameters:
        what = f"{text} needs plain linear layers (no quantized ones, no fused experts)"
        raise UsageError(what, where="--init_weights", fix="--init_weights true")
    return text


def _modules_to_save(model, tuner: TunerOptions) -> list[str]:
    """The modules to train whole; every name must match a module's last component or its full name."""
    names = [name for name, _ in model.named_modules() if name]
    for wanted in tuner.modules_to_save:
        if not any(name == wanted or name.endswith("." + wanted) for name in names):
            fix = f"modules of this model: {', '.join(n for n in leaves(names) if not n.isdigit())}"
            raise UsageError(f"no module is called {wanted!r}", where="--modules_to_save", fix=fix)
    return list(tuner.modules_to_save)


def _new_rows(model, tuner: TunerOptions, ids: Sequence[int]) -> dict[str, list[int]]:
    """Embedding layers with the rows that train; not those that train whole anyway."""
    if not ids:
        return {}
    layers = {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    names = [name for name, module in model.named_modules() if id(module) in layers]
    if model.config.get_text_config().tie_word_embeddings:
        names = names[:1]  # peft finds the tied head itself
    return {leaf: list(ids) for leaf in leaves(names) if leaf not in tuner.modules_to_save}


@torch.no_grad()
def _cast_trainable(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _full(model, tuner: TunerOptions) -> None:
    if getattr(model, "is_quantized", False):
        raise UsageError("quantized weights can't be trained", where="--tuner_type full", fix="--tuner_type lora")
    names = [name for name, _ in model.named_parameters()]
    frozen = set(_by_prefix(names, tuner.freeze_parameters, "freeze_parameters"))
    frozen |= set(_matching(names, tuner.freeze_parameters_regex, "freeze_parameters_regex"))
    frozen |= set(_lowest(model, tuner.freeze_parameters_ratio))
    parts = find_parts(model)
    frozen |= {name for name in names if parts.of(name) in frozen_parts(parts, tuner)}
    frozen -= set(_by_prefix(names, tuner.trainable_parameters, "trainable_parameters"))
    frozen -= set(_matching(names, tuner.trainable_parameters_regex, "trainable_parameters_regex"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen and parameter.is_floating_point())


def _by_prefix(names: Sequence[str], prefixes: Sequence[str], option: str) -> list[str]:
    found: list[str] = []
    for prefix in prefixes:
        matched = [name for name in names if name.startswith(prefix)]
        if not matched:
            raise UsageError(
                f"no parameter starts with {prefix!r}", where=f"--{option}", fix=f"names look like {_examples(names)}"
            )
        found += matched
    return found


def _matching(names: Sequence[str], pattern: str | None, option: str) -> list[str]:
    """Names in which the pattern is found anywhere."""
    if pattern is None:
        return []
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a valid regular expression: {error}", where=f"--{option}") from error
    found = [name for name in names if regex.search(name)]
    if not found:
        raise UsageError(
            f"no parameter matches {pattern!r}", where=f"--{option}", fix=f"names look like {_examples(names)}"
        )
    return found


def _examples(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def _lowest(model, ratio: float) -> list[str]:
    """The parameters from the bottom of the model (embeddings first) that make up at most `ratio` of all."""
    limit = ratio * sum(_elements(parameter) for parameter in model.parameters())
    chosen, seen = [], 0
    for name, parameter in model.named_parameters():
        seen += _elements(parameter)
        if seen > limit:
            break
        chosen.append(name)
    return chosen


def trainable_summary(model) -> str:
    """One line: how much of the model trains, and where."""
    trained = [(name, _elements(p)) for name, p in model.named_parameters() if p.requires_grad]
    count, total = sum(size for _, size in trained), _stored_parameters(model)
    head = f"trainable: {count:,} of {total:,} parameters ({100 * count / total:.4g} %)"
    config = getattr(model, "peft_config", {}).get("default")
    if config is None:
        return head
    where = leaves([*(config.target_modules or ()), *(config.target_parameters or ())])
    extra = "".join([", rsLoRA" * config.use_rslora, ", DoRA" * config.use_dora])
    return f"{head}, LoRA rank {config.r}, alpha {config.lora_alpha}{extra} on {', '.join(sorted(where))}"


def _stored_parameters(model) -> int:
    """Parameters of the model; a 4-bit tensor packs two in a byte."""
    return sum(_elements(p) * (2 if type(p).__name__ == "Params4bit" else 1) for p in model.parameters())


def _elements(parameter) -> int:
    """Of the whole parameter: DeepSpeed's ZeRO-3 leaves nothing in its place."""
    return getattr(parameter, "ds_numel", parameter.numel())


def optimizer_groups(
    model,
    *,
    learning_rate: float,
    weight_decay: float,
    lorap_lr_ratio: float | None = None,
    part_rates: Mapping[str, float] | None = None,
    decays: Callable[[str], bool] | None = None,
) -> list[dict]:
    """Parameter groups for an optimizer: with and without weight decay, with LoRA+ the B matrices at `lorap_lr_ratio`
    times the learning rate (Hayou et al. 2024), and parts of the model (`swift.models.parts`) at rates of their own.

    `decays(name)` says whether a parameter is decayed; by default all but biases and norms (1-D parameters), as in
    the Trainer.
    """
    decays = decays or (lambda name: True)
    parts, part_rates = find_parts(model) if part_rates else Parts(), part_rates or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        fast = lorap_lr_ratio is not None and ("lora_B" in name or "lora_embedding_B" in name)
        rate = part_rates.get(parts.of(name), learning_rate) * (lorap_lr_ratio if fast else 1.0)
        decay = weight_decay if parameter.ndim > 1 and decays(name) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
