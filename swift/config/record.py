"""A resolved config as a record: the text of --dry_run, the args.json of a run, what a later command takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from swift import __version__, runs
from swift.config.commands import Config, Origin
from swift.errors import UsageError
from swift.i18n.said import said

C = TypeVar("C", bound=Config)

# What a command that starts from a run's checkpoint takes over from it unless told otherwise: the prompts must be those
# of the training, and the base model is the adapter's.
INHERITED = (
    "model",
    "model_type",
    "model_revision",
    "use_hf",
    "torch_dtype",
    "attn_impl",
    "rope_scaling",
    "new_special_tokens",
    "quant_method",
    "quant_bits",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_quant_storage",
    "template",
    "system",
    "max_length",
    "truncation_strategy",
    "enable_thinking",
    "preserve_thinking",
    "template_kwargs",
    "response_prefix",
    "use_chat_template",
    "task_type",
    "num_labels",
    "problem_type",
    "label_names",
    "loss_type",
)
INHERITED_DATA = (
    "dataset",
    "val_dataset",
    "dataset_dir",
    "split_dataset_ratio",
    "columns",
    "data_seed",
    "model_name",
    "model_author",
    "custom_dataset_info",
)


def explain(config: Config) -> str:
    """The resolved options one per line, by section, each that wasn't typed with its source and reason."""
    lines = []
    section = None
    for name, spec in config.specs().items():
        if spec.section != section:
            section = spec.section
            lines.append(f"[{section}]")
        origin = config.origins.get(name, Origin("default"))
        why = f": {said(origin.why)}" if origin.why else ""
        note = "" if origin.source == "command line" else f"  # {origin.source}{why}"
        lines.append(f"{name} = {_shown(config.value(name))}{note}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) if value else "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    return "(not set)" if value is None else str(value)


def save_args(directory: Path, command: str, config: Config, **facts: Any) -> None:
    """Write args.json: every option, where it came from, and `facts` of the run (the model's directory ...)."""
    options = config.flat()
    if options.get("hub_token"):
        options["hub_token"] = None  # a secret isn't written down
    origins = {name: {"source": o.source, "why": o.why} for name, o in config.origins.items()}
    record = {"swift_version": __version__, "command": command, **facts, "options": options, "origins": origins}
    runs.write_json(directory / runs.ARGS, record)


def inherit(config: C, checkpoint: Path, load_data_args: bool = False) -> C:
    """Take over the model and chat options of the run that wrote `checkpoint`, where the user gave none.

    A checkpoint without args.json (made by plain peft or transformers) leaves the config as it is.
    """
    record = runs.read_args(checkpoint)
    if record is None:
        return config
    options = record.get("options")
    if not isinstance(options, dict):
        raise UsageError(
            "args.json is not one of swift's",
            where=str(checkpoint),
            fix="pass --load_args false and name --model yourself",
        )
    specs = config.specs()
    names = INHERITED + (INHERITED_DATA if load_data_args else ())
    values = {}
    for name in names:
        if name in specs and name in options and not config.given(name):
            value = options[name]
            values[name] = tuple(value) if specs[name].is_list and value is not None else value
    if "model" in values and record.get("model_path") and Path(record["model_path"]).exists():
        values["model"] = record["model_path"]
    changed = {k: v for k, v in values.items() if v != config.value(k)}
    return config.replace(changed, "args.json", str(checkpoint))
