"""Which layers of a model LoRA reaches: the user's words turned into peft's target_modules and target_parameters.

Promises: nothing is targeted silently. Mixture-of-experts routers and the output head are left out of `all-linear`;
experts that transformers fuses into 3-D tensors are reached as parameters, and it is said; a name that matches
nothing is an error. In a model that sees or hears, names and `all-linear` mean the parts that aren't frozen (by
default the language model); full names and patterns mean what they match. Names are those of transformers' modules.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from swift.config.tuner import TunerOptions
from swift.errors import UsageError
from swift.models.bypass import bypassed, odd_layers
from swift.models.heads import classifies
from swift.models.packed import fused_experts
from swift.models.parts import ALIGNER, LLM, VIT, Parts, find_parts

# names of expert projections in checkpoints, and the fused tensor that holds each
FUSED_PARTS = {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "w1": "gate_up_proj",
    "w3": "gate_up_proj",
    "down_proj": "down_proj",
    "w2": "down_proj",
}
SHORTHANDS = ("all-linear", "all-embedding", "all-router", "all-experts")


@dataclass(frozen=True)
class Targets:
    """`modules`: full names of layers; `parameters`: full names of parameters; `notes`: what to tell the user."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers:
    """The parts of a model that LoRA can reach, by full name."""

    linear: tuple[str, ...]
    embedding: tuple[str, ...]
    other: tuple[str, ...]  # convolutions
    head: str | None
    parts: Parts
    routers: tuple[str, ...]  # modules
    router_parameters: tuple[str, ...]
    experts: tuple[str, ...]  # fused 3-D parameters
    unreachable: tuple[str, ...]  # linear layers that peft can't adapt in this architecture

    @property
    def modules(self) -> tuple[str, ...]:
        return self.linear + self.embedding + self.other


def survey(model: nn.Module) -> Layers:
    """Sort the modules of a transformers model (without adapters) by what they are to LoRA."""
    from transformers.pytorch_utils import Conv1D

    linear, embedding, other = [], [], []
    quantized = getattr(model, "is_quantized", False)
    inside = model.base_model_prefix if classifies(model) else None
    for name, module in model.named_modules():
        if inside is not None and name.partition(".")[0] != inside:
            continue  # a classifier's own head trains whole
        if isinstance(module, (nn.Linear, Conv1D)) or (quantized and _is_leaf_linear(module)):
            linear.append(name)
        elif isinstance(module, nn.Embedding):
            embedding.append(name)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            other.append(name)
    experts = tuple(fused_experts(model))
    routers, router_parameters = _routers(model, linear)
    output = model.get_output_embeddings()
    head = (
        next((name for name, module in model.named_modules() if module is output), None) if output is not None else None
    )
    return Layers(
        linear=tuple(linear),
        embedding=tuple(embedding),
        other=tuple(other),
        head=head,
        parts=find_parts(model),
        routers=routers,
        router_parameters=router_parameters,
        experts=experts,
        unreachable=_unreachable(model, linear),
    )


def _is_leaf_linear(module: nn.Module) -> bool:
    """A quantized library's linear layer: by its class's name and its sizes, and not a module around one."""
    named = "Linear" in type(module).__name__ and "in_features" in vars(module)
    return named and not any(True for _ in module.children())


def routers(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers that choose experts."""
    return _routers(model, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)])[0]


def _routers(model: nn.Module, linear: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers beside `experts` whose output has one value per expert, or one value (the gate of a shared expert).

    Returns (linear modules, 2-D parameters of modules of another kind).
    """
    modules, parameters = [], []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        if "experts" not in children:
            continue
        counts = {1, _expert_count(children["experts"])}
        experts = f"{name}.experts."
        for inner, parameter in module.named_parameters(prefix=name):
            if parameter.ndim == 2 and parameter.shape[0] in counts and not inner.startswith(experts):
                owner = inner.rpartition(".")[0]
                (modules if owner in linear else parameters).append(owner if owner in linear else inner)
    return tuple(modules), tuple(parameters)


def _expert_count(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    return next((p.shape[0] for p in experts.parameters(recurse=False) if p.ndim == 3), 0)


def _unreachable(model: nn.Module, linear: Sequence[str]) -> tuple[str, ...]:
    """Layers whose weight the model reads past the module, so that an adapter there has no effect (Mamba's kernels and
    their like; peft refuses some of them), and layers that share their weight.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    refused = set()
    for leaf in {name.rpartition(".")[2] for name in linear}:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, leaf)
        except ValueError:
            refused.add(leaf)
    past = set(bypassed(model)) | _sharing(model, linear)
    return tuple(name for name in linear if name in past or name.rpartition(".")[2] in refused)


def _sharing(model: nn.Module, linear: Sequence[str]) -> set[str]:
    """Layers that share their weight with another one (the blocks of Zamba2): each would get an adapter of its own, and
    no merged weight could be both.
    """
    owners: dict[int, list[str]] = {}
    for name in linear:
        weight = getattr(model.get_submodule(name), "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def resolve_targets(model: nn.Module, tuner: TunerOptions) -> Targets:
    """What the options reach in this model. UsageError for names that match nothing, and when nothing is reached."""
    layers = survey(model)
    modules: dict[str, None] = {}
    parameters: dict[str, None] = {}
    notes: list[str] = []
    if tuner.target_regex:
        found = _by_regex(layers, tuner.target_regex)
        modules |= dict.fromkeys(found[0])
        parameters |= dict.fromkeys(found[1])
    else:
        for word in tuner.target_modules:
            found = _by_word(layers, word, tuner, notes)
            modules |= dict.fromkeys(found[0])
            parameters |= dict.fromkeys(found[1])
    for name in tuner.target_parameters:
        parameters |= dict.fromkeys(_parameters_named(model, name))
    moved = _past_peft(model, modules)
    if moved:
        why = "peft would take these names for experts, or the layers for plain linear ones"
        notes.append(f"adapted as parameters ({why}): {', '.join(leaves(moved))}")
    modules = {name: None for name in modules if name not in moved}
    parameters |= {f"{name}.weight": None for name in moved}
    return Targets(
        _in_order(model.named_modules(), modules), _in_order(model.named_parameters(), parameters), tuple(notes)
    )


def _in_order(named: Iterable[tuple[str, object]], wanted: dict[str, None]) -> tuple[str, ...]:
    return tuple(name for name, _ in named if name in wanted)


def _by_word(layers: Layers, word: str, tuner: TunerOptions, notes: list[str]) -> tuple[list[str], list[str]]:
    """(modules, parameters) that one value of --target_modules means."""
    if word == "all-linear":
        return _all_linear(layers, tuner, notes)
    if word == "all-embedding":
        return _thawed(layers, layers.embedding, tuner), []
    if word in ("all-router", "all-experts"):
        routers = word == "all-router"
        modules = list(layers.routers) if routers else [name for name in layers.linear if ".experts." in name]
        parameters = list(layers.router_parameters if routers else layers.experts)
        if not modules and not parameters:
            raise UsageError(
                "this model has no experts", where=f"--target_modules {word}", fix="--target_modules all-linear"
            )
        return modules, parameters
    named = [name for name in layers.modules if name == word or name.endswith("." + word)]
    modules = named if word in named else _thawed(layers, named, tuner)
    if named and not modules:
        fix = "--freeze_vit false, --freeze_aligner false or --freeze_llm false, or the layer's full name"
        raise UsageError(f"{word} is only in parts of the model that are frozen", where="--target_modules", fix=fix)
    parameters = _expert_parameters(layers, word, tuner)
    if word in leaves(layers.router_parameters) or word in leaves(
        name.removesuffix(".weight") for name in layers.router_parameters
    ):
        parameters += [n for n in layers.router_parameters if n.removesuffix(".weight").endswith("." + word)]
    if not modules and not parameters:
        raise UsageError(
            f"no layer of this model is called {word!r}",
            where="--target_modules",
            fix=f"one or more of {', '.join(known_names(layers))}; or {', '.join(SHORTHANDS[:3])}",
        )
    if parameters:
        notes.append(f"{word}: LoRA also reaches the experts, which are stored as {', '.join(leaves(parameters))}")
    return modules, parameters


def _all_linear(layers: Layers, tuner: TunerOptions, notes: list[str]) -> tuple[list[str], list[str]]:
    left_out = {layers.head, *layers.routers, *layers.unreachable}
    modules = [n for n in _thawed(layers, layers.linear, tuner) if n not in left_out]
    if layers.parts.several:
        notes.append(_reached(tuner))
    if layers.routers or layers.router_parameters:
        names = leaves([*layers.routers, *(n.removesuffix(".weight") for n in layers.router_parameters)])
        notes.append(f"the routers ({', '.join(names)}) are not trained; --target_modules all-linear all-router would")
    if layers.unreachable:
        why = "the model reads their weights past them, or shares them between layers"
        notes.append(f"left out, {why}: {', '.join(leaves(layers.unreachable))}")
    if not layers.experts or tuner.freeze_llm:
        return modules, []
    count = len(leaves(layers.experts))
    if tuner.use_dora:
        notes.append(f"the experts ({count} fused tensors a layer) are not trained: DoRA can't reach them")
        return modules, []
    notes.append(f"LoRA reaches the experts too ({', '.join(leaves(layers.experts))} of each layer)")
    return modules, list(layers.experts)


def _thawed(layers: Layers, names: Iterable[str], tuner: TunerOptions) -> list[str]:
    """Those of the names that aren't in a frozen part of the model."""
    frozen = frozen_parts(layers.parts, tuner)
    return [name for name in names if layers.parts.of(name) not in frozen]


def frozen_parts(parts: Parts, tuner: TunerOptions) -> set[str]:
    """Parts that --freeze_llm, --freeze_vit and --freeze_aligner leave as they are; none in a model of text."""
    if not parts.several:
        return set()
    flags = ((LLM, tuner.freeze_llm), (VIT, tuner.freeze_vit), (ALIGNER, tuner.freeze_aligner))
    return {part for part, frozen in flags if frozen}


def _reached(tuner: TunerOptions) -> str:
    flags = (
        ("the language model", tuner.freeze_llm, "freeze_llm"),
        ("the towers", tuner.freeze_vit, "freeze_vit"),
        ("the layers between them", tuner.freeze_aligner, "freeze_aligner"),
    )
    reached = [what for what, frozen, _ in flags if not frozen]
    others = [f"--{flag} false" for _, frozen, flag in flags if frozen]
    return f"LoRA reaches {', '.join(reached) or 'nothing'}" + (f" ({', '.join(others)} for more)" if others else "")


def _expert_parameters(layers: Layers, word: str, tuner: TunerOptions) -> list[str]:
    """Fused expert tensors that `word` names, by their own name or by the projection's name in the checkpoint."""
    fused = [name for name in layers.experts if name.endswith("." + word)]
    target = FUSED_PARTS.get(word)
    if fused or target is None or target == word:
        return fused
    fused = [name for name in layers.experts if name.endswith("." + target)]
    partners = {
        name for name, to in FUSED_PARTS.items() if to == target and (name.endswith("_proj") == word.endswith("_proj"))
    }
    missing = partners - set(tuner.target_modules)
    dense = any(name.endswith("." + word) for name in layers.linear)
    if fused and missing and not dense:
        both = " ".join(sorted(partners))
        what = f"this model keeps {both} of its experts in one tensor ({target}): they train together"
        raise UsageError(what, where=f"--target_modules {word}", fix=f"--target_modules {both}")
    return [] if missing else fused


def _by_regex(layers: Layers, pattern: str) -> tuple[list[str], list[str]]:
    """Modules and fused expert tensors whose full name matches the whole pattern (as in peft)."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a valid regular expression: {error}", where="--target_regex") from error
    modules = [name for name in layers.modules if regex.fullmatch(name)]
    parameters = [name for name in (*layers.experts, *layers.router_parameters) if regex.fullmatch(name)]
    if not modules and not parameters:
        examples = [*layers.linear[:2], *layers.experts[:1]]
        what = f"no layer's full name matches {pattern!r}"
        raise UsageError(
            what, where="--target_regex", fix=f"the whole name must match; names look like {', '.join(examples)}"
        )
    return modules, parameters


def _parameters_named(model: nn.Module, name: str) -> list[str]:
    found = [full for full, _ in model.named_parameters() if full == name or full.endswith("." + name)]
    if not found:
        known = leaves(full for full, parameter in model.named_parameters() if parameter.ndim == 3) or ["(none)"]
        what = f"no parameter is called {name!r}"
        raise UsageError(what, where="--target_parameters", fix=f"3-D parameters of this model: {', '.join(known)}")
    return found


def _past_peft(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Modules that can't be named to peft because it would read their names as the fused experts' or the router's.

    In MoE architectures that transformers fuses, peft turns gate_proj, up_proj, down_proj (also of a dense layer or
    a shared expert) and gate into target_parameters. Naming such a layer's weight as a parameter says what is
    meant.
    """
    from peft.utils import transformers_weight_conversion as conversion

    kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    taken = conversion._MOE_TARGET_MODULE_MAPPING.get(kind, {})
    odd = set(odd_layers(model))
    return [name for name in modules if name.rpartition(".")[2] in taken or name in odd]


def leaves(names: Iterable[str]) -> list[str]:
    """The distinct last components, in order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def known_names(layers: Layers) -> list[str]:
    """Last components of all layers that could be named, the most frequent first."""
    counts = Counter(name.rpartition(".")[2] for name in (*layers.modules, *layers.experts))
    return [name for name, _ in counts.most_common() if not name.isdigit()]


def shortest(names: Sequence[str], everything: Iterable[str]) -> list[str]:
    """The names by their last component where that says the same (no other name of `everything` ends in it)."""
    chosen, by_leaf = set(names), {}
    for name in everything:
        by_leaf.setdefault(name.rpartition(".")[2], set()).add(name)
    short = {}
    for name in names:
        leaf = name.rpartition(".")[2]
        short[leaf if by_leaf.get(leaf, set()) <= chosen and not leaf.isdigit() else name] = None
    return list(short)
