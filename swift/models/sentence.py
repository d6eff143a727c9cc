"""Embedding models in the layout of sentence-transformers: what stands beside the transformer, read and applied.

Promises: a text's vector is the one that sentence-transformers gives; a module that isn't known is an error, never left
out. Reading the layout needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import ModelFileError
from swift.hub.files import read_json, read_json_object

MODULES = "modules.json"
# the order in which several are put behind one another; older names -> pooling_mode_NAME
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Layout:
    """`modes`: how the tokens' vectors become one (several: one behind the other). `dense`: directories of linear
    layers that follow. `normalize`: the vector gets length 1. Texts begin with `prompt`, are put into small letters
    where `lower` says so, and have at most `max_length` tokens.
    """

    modes: tuple[str, ...]
    dense: tuple[Path, ...] = ()
    normalize: bool = False
    prompt: str = ""
    lower: bool = False
    max_length: int | None = None


def has_layout(directory: Path) -> bool:
    return (directory / MODULES).is_file()


def read_layout(directory: Path) -> Layout:
    """The layout in a directory that has one; ModelFileError for what can't be applied as it is meant."""
    where = directory / MODULES
    modules = read_json(where)
    if not isinstance(modules, list) or not all(isinstance(m, Mapping) and "type" in m for m in modules):
        raise ModelFileError("is no list of modules", where=str(where), fix="download the model again")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    folders = [directory / str(module.get("path") or "") for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or folders[0] != directory:
        what = f"begins with {' and '.join(kinds[:2])}; only a transformer in the directory itself and a pooling work"
        raise ModelFileError(what, where=str(where), fix="choose a model of that form")
    dense, normalize = [], False
    for kind, folder in zip(kinds[2:], folders[2:], strict=True):
        if kind == "Dense" and not normalize:
            dense.append(folder)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Dropout":  # it does nothing outside of training
            raise ModelFileError(f"the module {kind} is not known here", where=str(where), fix="choose another model")
    return Layout(_modes(folders[1]), tuple(dense), normalize, _prompt(directory, folders[1]), *_texts(directory))


def _modes(folder: Path) -> tuple[str, ...]:
    config = _optional(folder / "config.json")
    named = config.get("pooling_mode")
    if named is None:
        chosen = [mode for key, mode in OLD_MODES.items() if config.get(key)]
    else:
        chosen = [named] if isinstance(named, str) else list(named)
    if not chosen or any(mode not in MODES for mode in chosen):
        what = f"names no pooling that is known here: {', '.join(map(str, chosen)) or 'none'}"
        raise ModelFileError(what, where=str(folder / "config.json"), fix=f"known: {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in chosen)


def _prompt(directory: Path, pooling: Path) -> str:
    config = _optional(directory / "config_sentence_transformers.json")
    prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name") or "") or ""
    if prompt and _optional(pooling / "config.json").get("include_prompt") is False:
        what = "the prompt before each text is left out of the pooling, which is not known here"
        raise ModelFileError(what, where=str(pooling / "config.json"), fix="choose another model")
    return prompt


def _texts(directory: Path) -> tuple[bool, int | None]:
    config = _optional(directory / "sentence_bert_config.json")
    return bool(config.get("do_lower_case")), config.get("max_seq_length")


def _optional(path: Path) -> Mapping[str, Any]:
    return read_json_object(path) if path.is_file() else {}


# ---- applied (with torch) ----


def pooled(hidden: Any, mask: Any, modes: tuple[str, ...]) -> Any:
    """float32 [texts, modes * size] of hidden states [texts, length, size] and their mask [texts, length]."""
    import torch

    hidden, weight = hidden.float(), mask[..., None].float()
    total = (hidden * weight).sum(1)
    count = weight.sum(1).clamp(min=1e-9)
    rows = torch.arange(len(hidden), device=hidden.device)
    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(hidden[rows, mask.argmax(dim=1)])
        elif mode == "lasttoken":
            parts.append(hidden[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)])
        elif mode == "max":
            parts.append(hidden.masked_fill(weight == 0, -torch.inf).amax(1))
        elif mode == "weightedmean":
            places = weight * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[None, :, None]
            parts.append((hidden * places).sum(1) / places.sum(1).clamp(min=1e-9))
        else:
            parts.append(total / (count if mode == "mean" else count.sqrt()))
    return torch.cat(parts, dim=-1)


def load_dense(folder: Path, device: Any) -> Any:
    """A linear layer with its activation, in float32."""
    import torch
    from safetensors.torch import load_file

    config = _optional(folder / "config.json")
    name = str(config.get("activation_function") or "torch.nn.modules.linear.Identity").rpartition(".")[2]
    activation = getattr(torch.nn, name, None)
    if activation is None:
        raise ModelFileError(f"the activation {name} is not torch's", where=str(folder / "config.json"))
    layer = torch.nn.Linear(config["in_features"], config["out_features"], bool(config.get("bias", True)))
    weights = folder / "model.safetensors"
    if weights.is_file():
        state = load_file(weights)
    elif (folder / "pytorch_model.bin").is_file():
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    else:
        raise ModelFileError("has no weights", where=str(folder), fix="download the model again")
    layer.load_state_dict({key.removeprefix("linear."): value.float() for key, value in state.items()})
    return torch.nn.Sequential(layer, activation()).to(device).eval()
