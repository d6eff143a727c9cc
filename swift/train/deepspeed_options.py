"""--deepspeed: a built-in configuration by name, a file or JSON, as what transformers takes.

Promises: values that contradict the options of the command line are named before anything is loaded. Imports neither
torch nor deepspeed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift.config.commands import SftConfig
from swift.config.json_object import json_object
from swift.errors import MissingPackage, UsageError

BUILT_IN = Path(__file__).with_name("deepspeed")
OFF = ("", "none", "false")
AUTO = "auto"
# key of the configuration -> option that it must agree with
SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.weight_decay": "weight_decay",
    "optimizer.params.eps": "adam_epsilon",
    "scheduler.params.warmup_max_lr": "learning_rate",
}


def names() -> list[str]:
    """The built-in configurations."""
    return sorted(path.stem for path in BUILT_IN.glob("*.json"))


def read_deepspeed(config: SftConfig) -> dict[str, Any] | None:
    """The configuration asked for; None without DeepSpeed. UsageError for what is no configuration."""
    text = (config.training.deepspeed or "").strip()
    if text.lower() in OFF:
        return None
    if text.lower() in names():
        text = str(BUILT_IN / f"{text.lower()}.json")
    fix = f"one of {', '.join(names())}, or a JSON file"
    found = json_object(text, "--deepspeed", "neither a built-in configuration nor a file", fix)
    _no_persistence(found)
    return found


def _no_persistence(settings: dict[str, Any]) -> None:
    """ZeRO-3 keeps small parameters whole between steps, and adapters are small: after an evaluation it fetches them in
    another order than it expects and ends the run (seen in 0.19.8). "auto" therefore means none."""
    zero = settings.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage3_param_persistence_threshold") == AUTO:
        zero["stage3_param_persistence_threshold"] = 0


def stage(settings: Mapping[str, Any]) -> int:
    """ZeRO's stage: 1 shares the optimizer's state, 2 gradients too, 3 weights too."""
    return int((settings.get("zero_optimization") or {}).get("stage", 0))


def check_deepspeed(config: SftConfig, settings: Mapping[str, Any], processes: int) -> None:
    """MissingPackage without the library, UsageError for values that contradict the command line."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingPackage("--deepspeed needs deepspeed", fix="pip install 'deepspeed>=0.19'")
    for key, option in SAME.items():
        value = _at(settings, key)
        if value not in (None, AUTO) and value != config.value(option):
            raise UsageError(
                f"{key} is {value}, --{option} is {config.value(option)}",
                where=f"--deepspeed {config.training.deepspeed}",
                fix=f'write "{AUTO}" there, or type --{option} {value}',
            )
    training = config.training
    rows = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * processes
    if settings.get("train_batch_size", AUTO) not in (AUTO, rows):
        raise UsageError(
            f"train_batch_size is {settings['train_batch_size']}, a step has {rows} rows",
            where=f"--deepspeed {config.training.deepspeed}",
            fix=f'write "{AUTO}" there',
        )


def _at(settings: Mapping[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
