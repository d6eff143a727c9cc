"""--fsdp and --fsdp_config in all the forms they are written in, as what transformers' FSDP2 takes.

Promises: `fsdp2`, transformers' `full_shard auto_wrap`, JSON and JSON files (ms-swift's, accelerate's) mean the same
thing; a setting is used, or said to mean nothing in FSDP2, or refused, never dropped in silence. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swift.config.commands import SftConfig
from swift.config.json_object import json_object
from swift.errors import UsageError

# words of transformers' --fsdp -> settings
WORDS: dict[str, dict[str, Any]] = {
    "fsdp2": {},
    "true": {},
    "full_shard": {"reshard_after_forward": True},
    "shard_grad_op": {"reshard_after_forward": False},
    "auto_wrap": {},
    "offload": {"cpu_offload": True},
}
OFF = ("", "false", "none", "no_shard")
# names of accelerate's YAML and of FSDP1 -> today's
RENAMED = {"offload_params": "cpu_offload", "min_num_param": "min_num_params"}
WRAP_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
USED = ("reshard_after_forward", "cpu_offload", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params")
# FSDP1's, which FSDP2 does by itself
MEANINGLESS = (
    "backward_prefetch",
    "backward_prefetch_policy",
    "forward_prefetch",
    "limit_all_gathers",
    "use_orig_params",
    "sync_module_states",
)
BUILT_IN = "fsdp2"


class Fsdp(NamedTuple):
    """`settings` go to transformers; `checkpointing` is --gradient_checkpointing where the settings say it."""

    settings: dict[str, Any]
    checkpointing: bool | None
    notes: tuple[str, ...]


def read_fsdp(config: SftConfig) -> Fsdp | None:
    """What the options ask for; None without FSDP. UsageError for what FSDP2 doesn't have."""
    text = (config.training.fsdp or "").strip()
    typed = _settings(config.training.fsdp_config, "--fsdp_config")
    if text.lower() in OFF:
        if typed:
            raise UsageError("settings of FSDP without --fsdp", where="--fsdp_config", fix=f"add --fsdp {BUILT_IN}")
        return None
    settings = _from_fsdp(text) | typed
    return _sorted_out(settings)


def _from_fsdp(text: str) -> dict[str, Any]:
    words = text.lower().replace(",", " ").split()
    if all(word in WORDS for word in words):
        return {name: value for word in words for name, value in WORDS[word].items()}
    if "hybrid_shard" in " ".join(words):
        raise UsageError("hybrid sharding is not built", where=f"--fsdp {text}", fix=f"--fsdp {BUILT_IN}")
    if not (text.startswith("{") or Path(text).expanduser().is_file()):
        raise UsageError(
            "neither a word of FSDP nor a file", where=f"--fsdp {text}", fix=f"--fsdp {BUILT_IN}, or a JSON file"
        )
    settings = _settings(text, "--fsdp")
    # ms-swift's file holds both of transformers' arguments
    inner = settings.pop("fsdp", None)
    nested = settings.pop("fsdp_config", None)
    words_of_file = " ".join(inner) if isinstance(inner, list) else str(inner or BUILT_IN)
    return _from_fsdp(words_of_file) | dict(nested or {}) | settings


def _settings(text: str | None, where: str) -> dict[str, Any]:
    """A JSON object, or the one in a JSON file."""
    if text is None or text.strip().lower() in ("", "none"):
        return {}
    return json_object(text, where)


def _sorted_out(given: Mapping[str, Any]) -> Fsdp:
    settings: dict[str, Any] = {}
    notes: list[str] = []
    checkpointing = None
    for key, value in given.items():
        name = key.removeprefix("fsdp_")
        name = RENAMED.get(name, name)
        if name in USED:
            settings[name] = value
        elif name == "activation_checkpointing":
            checkpointing = _truth(value, key)
        elif name == "version":
            if str(value) != "2":
                raise UsageError(f"only FSDP2 is here, not version {value}", where=key, fix="leave it out")
        elif name == "sharding_strategy":
            settings |= _from_fsdp(str(value))
        elif name == "state_dict_type":
            if str(value) != "FULL_STATE_DICT":
                notes.append(f"{key} {value}: checkpoints are whole all the same, for any number of processes")
        elif name == "cpu_ram_efficient_loading":
            if _truth(value, key):
                notes.append(f"{key}: weights are mapped from their files, so that processes share them")
        elif name in MEANINGLESS:
            notes.append(f"{key} means nothing in FSDP2")
        elif name in ("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt") and not _truth(value, key):
            continue
        else:
            raise UsageError("no setting of FSDP2", where=key, fix=f"one of {', '.join(USED)}")
    for name in ("reshard_after_forward", "cpu_offload"):
        if name in settings:
            settings[name] = _truth(settings[name], name)
    _check_wrapping(settings)
    return Fsdp({"version": 2, **settings}, checkpointing, tuple(notes))


def _truth(value: Any, where: str) -> bool:
    word = str(value).lower()
    if word in ("true", "full_shard"):
        return True
    if word in ("false", "shard_grad_op"):
        return False
    raise UsageError(f"{value!r} is neither true nor false", where=where)


def _check_wrapping(settings: dict[str, Any]) -> None:
    policy = settings.get("auto_wrap_policy")
    if policy is not None and policy not in WRAP_POLICIES:
        raise UsageError(f"{policy!r} is not possible", where="auto_wrap_policy", fix=f"one of {WRAP_POLICIES}")
    layers = settings.get("transformer_layer_cls_to_wrap")
    if isinstance(layers, str):
        settings["transformer_layer_cls_to_wrap"] = [name.strip() for name in layers.split(",") if name.strip()]
