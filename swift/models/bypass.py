"""Linear layers whose weight a model reads itself, past the layer's own forward.

Mamba multiplies with `self.dt_proj.weight`, some attention reads `self.kv_b_proj.weight`: an adapter on such a layer
would never be asked, and a weight packed in 4 or 8 bits would be read as if it were plain. The classes' source says
which they are; a class without source (compiled code) is taken to have none.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache

import torch
from torch import nn

CASTS = ("to", "type")
# what can be asked of a weight without computing with it
HARMLESS = {"dtype", "device", "shape", "ndim", "is_meta", "numel", "size", "requires_grad", "register_hook"}
# conditions of code that no release runs: layers computed in slices as they were in training, to the last bit
UNUSED = ("pretraining_tp", "slow_but_exact")
# modules whose classes are no layers of an architecture
NO_MODEL = ("torch.", "builtins", "peft.", "bitsandbytes.", "transformers.")
SETUP = {"__init__", "_init_weights", "reset_parameters", "tie_weights", "post_init", "extra_repr"}


def bypassed(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers of `model` whose weight is read elsewhere than in their own forward."""
    found = []
    for name, module in model.named_modules():
        for child in sorted(_read_past(type(module))):
            layer = getattr(module, child, None)
            if isinstance(layer, nn.Module) and _is_linear(layer):
                found.append(f"{name}.{child}" if name else child)
    return tuple(dict.fromkeys(found))


def cast_to(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers of `model` to whose weight's dtype it casts what it gives them, without asking
    whether those are integers: packed in 4 or 8 bits such a weight would round its inputs (HY-V4's indexer).
    """
    found = []
    for name, module in model.named_modules():
        for child in sorted(_cast_targets(type(module))):
            if isinstance(_below(module, child), nn.Linear):
                found.append(f"{name}.{child}" if name else child)
    return tuple(dict.fromkeys(found))


def _below(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path; None where there is none."""
    found: nn.Module | None = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def has_own_gradients(model: nn.Module) -> bool:
    """Whether the model's own code has a function that runs the backward of layers itself (Reformer's reversible
    ones): it is asked for gradients only when its input, not only a weight within, needs one.
    """
    own = inspect.getmodule(type(model))
    functions = (
        found
        for found in vars(own).values()
        if isinstance(found, type) and issubclass(found, torch.autograd.Function) and found.__module__ == own.__name__
    )
    return any(re.search(r"\.backward\w*\(", inspect.getsource(function.backward)) for function in functions)


def odd_layers(model: nn.Module) -> tuple[str, ...]:
    """Full names of layers that are linear by their class and compute something else: a class of their own that gives
    another shape than input times weight (DeepSeek-V4's grouped projection).
    """
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward and not _like_linear(module)
    )


def linear_by_another_name(model: nn.Module) -> list[nn.Linear]:
    """Layers of a class derived from nn.Linear whose own forward computes just what a linear layer does (Falcon's)."""
    found = []
    for layer in model.modules():
        kind = type(layer)
        own = isinstance(layer, nn.Linear) and kind.forward is not nn.Linear.forward
        if own and not kind.__module__.startswith(("bitsandbytes", "swift")) and _is_linear_in_numbers(kind, layer):
            found.append(layer)
    return found


_IN_NUMBERS: dict[type, bool] = {}


def _is_linear_in_numbers(kind: type, layer: nn.Linear) -> bool:
    """Tried once a class, on random weights of 24 x 16."""
    if kind not in _IN_NUMBERS:
        twin = object.__new__(kind)
        twin.__dict__ = {**layer.__dict__, "in_features": 16, "out_features": 24}
        weight, bias = torch.randn(24, 16, device="cpu"), torch.randn(24, device="cpu")
        twin._parameters = {"weight": nn.Parameter(weight, False), "bias": nn.Parameter(bias, False)}
        x = torch.randn(2, 3, 16, device="cpu")
        try:
            result = twin(x)
        except (RuntimeError, ValueError, IndexError):
            result = None
        wanted = nn.functional.linear(x, weight, bias)
        same = isinstance(result, torch.Tensor) and result.shape == wanted.shape
        _IN_NUMBERS[kind] = same and torch.allclose(result, wanted, atol=1e-5)
    return _IN_NUMBERS[kind]


def _like_linear(layer: nn.Linear) -> bool:
    """Tried on the meta device, where nothing is computed."""
    if type(layer).__module__.startswith(("bitsandbytes", "swift")):
        return True
    try:
        result = _on_meta(layer)(torch.empty(2, 3, layer.in_features, device="meta"))
    except (RuntimeError, ValueError, IndexError):
        return False
    return isinstance(result, torch.Tensor) and tuple(result.shape) == (2, 3, layer.out_features)


def _on_meta(layer: nn.Linear) -> nn.Module:
    """The same object with weights on the meta device."""
    twin = object.__new__(type(layer))
    twin.__dict__ = {**layer.__dict__}
    twin._parameters = {
        name: None if value is None else nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
        for name, value in layer._parameters.items()
    }
    return twin


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D" or "Linear" in type(layer).__name__


@cache
def _read_past(kind: type) -> frozenset[str]:
    """Names X of children with `self.X.weight` in a method of the class or of its bases, libraries' own excepted."""
    return frozenset(name for method in _methods(kind) for name in _weights_of_children(method))


@cache
def _cast_targets(kind: type) -> frozenset[str]:
    """Paths X below a module ("proj", "embeddings.patch_embedding") with `.to(self.X.weight.dtype)`, there or by a
    variable, in a method that doesn't ask for torch.int8.
    """
    names: set[str] = set()
    for method in _methods(kind):
        if "torch.int8" in ast.unparse(method):
            continue
        variables = {
            target.id: ast.unparse(found.value)
            for found in ast.walk(method)
            if isinstance(found, ast.Assign)
            for target in found.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(method):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in CASTS:
                for value in (*call.args, *(word.value for word in call.keywords)):
                    text = ast.unparse(value)
                    names |= set(re.findall(r"^self\.([\w.]+)\.weight\.dtype$", variables.get(text, text)))
    return frozenset(names)


@cache
def _methods(kind: type) -> tuple[ast.FunctionDef, ...]:
    """Of the class and of its bases, libraries' own and what only sets up excepted."""
    found: list[ast.FunctionDef] = []
    for base in kind.__mro__:
        if base.__module__.startswith(NO_MODEL) and not base.__module__.startswith("transformers.models."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        found += [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name not in SETUP]
    return tuple(found)


def _weights_of_children(method: ast.FunctionDef) -> set[str]:
    harmless = {
        id(node.value) for node in ast.walk(method) if isinstance(node, ast.Attribute) and node.attr in HARMLESS
    }
    for branch in ast.walk(method):
        if isinstance(branch, ast.If) and any(word in ast.unparse(branch.test) for word in UNUSED):
            harmless |= {id(node) for part in branch.body for node in ast.walk(part)}
    found = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and id(node) not in harmless:
            owner = node.value
            if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self":
                found.add(owner.attr)
    return found
