"""Linear layers whose weight a model reads itself, past the layer's own forward.

Mamba multiplies with `self.dt_proj.weight`, some attention reads `self.kv_b_proj.weight`: an adapter on such a layer
would never be asked, and a weight packed in 4 or 8 bits would be read as if it were plain. The classes' source says
which they are; a class without source (compiled code) is taken to have none.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache

from torch import nn

# what can be asked of a weight without computing with it
HARMLESS = {"dtype", "device", "shape", "ndim", "is_meta", "numel", "size", "requires_grad", "register_hook"}
# conditions of code that no release runs: layers computed in slices as they were in training, to the last bit
UNUSED = ("pretraining_tp", "slow_but_exact")
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


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D" or "Linear" in type(layer).__name__


@cache
def _read_past(kind: type) -> frozenset[str]:
    """Names X of children with `self.X.weight` in a method of the class or of its bases, layers of torch excepted."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in ("torch", "builtins", "peft", "bitsandbytes"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and method.name not in SETUP:
                names |= _weights_of_children(method)
    return frozenset(names)


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
