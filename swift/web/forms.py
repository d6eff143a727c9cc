"""Forms made from a command's config: what to show, and text typed into fields -> argv, mistakes, YAML, and back.

Promises: a form knows no option that the command line doesn't, and says of a value what the command line says of it;
`parse(argv(fields))` is the config that the fields describe. Knows nothing of pages.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from swift.config.commands import Config, SftConfig
from swift.config.options import Spec
from swift.config.parse import convert, names_of, parse, read_config_file
from swift.config.registry import COMMANDS, load
from swift.errors import SwiftError, UsageError
from swift.i18n import text
from swift.i18n.said import error_said, said

Fields = Mapping[str, Any]  # option name -> what stands in its field: text, True or False; absent or "": not given

# Shown first, in this order; everything else is folded by section.
COMMON: dict[str, tuple[str, ...]] = {
    "sft": (
        "model",
        "dataset",
        "tuner_type",
        "output_dir",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "lora_rank",
        "lora_alpha",
        "split_dataset_ratio",
        "save_steps",
        "logging_steps",
        "system",
    ),
    "eval": ("model", "adapters", "eval_dataset", "eval_limit", "local_dataset", "eval_backend", "eval_output_dir"),
    "export": (
        "model",
        "adapters",
        "merge_lora",
        "quant_method",
        "quant_bits",
        "output_dir",
        "dataset",
        "to_cached_dataset",
    ),
    "deploy": (
        "model",
        "adapters",
        "infer_backend",
        "host",
        "port",
        "api_key",
        "served_model_name",
        "max_new_tokens",
        "temperature",
    ),
}
SECRETS = frozenset(("hub_token", "api_key", "engine_api_key", "password"))
HIDDEN = frozenset(("dry_run",))
LONG = frozenset(("system", "prompt"))
FLAG = re.compile(r"--([A-Za-z]\w*)")


def config_class(command: str) -> type[Config]:
    """The config of a command that can be run from a form; UsageError for any other word."""
    found = COMMANDS.get(command)
    if found is None or found.config is None or found.main is None:
        raise UsageError(f"unknown command {command!r}", fix="see swift --help")
    return load(found.config)


def specs_of(command: str) -> dict[str, Spec]:
    return {name: spec for name, spec in config_class(command).specs().items() if name not in HIDDEN}


def schema(command: str, lang: str) -> dict[str, Any]:
    """Everything a page needs to draw the form: the common fields, and the others by section."""
    specs = specs_of(command)
    first = [name for name in COMMON.get(command, COMMON["sft"]) if name in specs]
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, spec in specs.items():
        if name not in first:
            groups.setdefault(spec.section, []).append(_field(spec, lang))
    return {
        "command": command,
        "title": text(f"commands.{command}", lang),
        "common": [_field(specs[name], lang) for name in first],
        "groups": [{"id": s, "title": text(f"groups.{s}", lang), "fields": fields} for s, fields in groups.items()],
    }


def _field(spec: Spec, lang: str) -> dict[str, Any]:
    kind = "choice" if spec.choices and not spec.is_list else spec.kind
    return {
        "name": spec.name,
        "kind": "list" if spec.is_list else kind,
        "type": spec.type_name,
        "help": text(f"options.{spec.name}", lang),
        "default": shown(spec.default),
        "choices": [str(choice) for choice in spec.choices],
        "low": spec.low,
        "high": spec.high,
        "also": list(spec.aliases),
        "secret": spec.name in SECRETS,
        "long": spec.name in LONG,
    }


def shown(value: Any) -> str:
    """A value as a user would type it."""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return shlex.join(map(shown, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# ---- fields -> command line ----


def argv(command: str, fields: Fields) -> list[str]:
    """The words after `swift`. UsageError for an unknown command or field, or text that can't be split into words."""
    specs = specs_of(command)
    words = [command]
    for name in specs:
        if name in fields:
            words += _words(specs[name], fields[name])
    unknown = [name for name in fields if name not in specs]
    if unknown:
        raise UsageError("unknown option", where=f"--{unknown[0]}", fix="see --help for the options of this command")
    return words


def _words(spec: Spec, raw: Any) -> list[str]:
    """The flag and its value; nothing where the field says no more than the default."""
    flag = f"--{spec.name}"
    typed = str(raw).lower() if isinstance(raw, bool) else str(raw if raw is not None else "")
    if not typed.strip():
        return []
    if spec.is_list:
        values = split(typed, flag)
        if any(value.startswith("-") for value in values):
            raise UsageError("a value may not begin with a dash", where=flag)
        return [flag, *values]
    if spec.kind != "str":
        typed = typed.strip()
    if typed == shown(spec.default):
        return []
    return [f"{flag}={typed}"] if typed.startswith("-") else [flag, typed]


def join(values: Sequence[str]) -> str:
    """Several values as they stand in one field."""
    return shlex.join(values)


def split(typed: str, where: str) -> list[str]:
    """The values in a field that holds several, as a shell would see them."""
    if typed.strip().startswith("["):
        return [typed.strip()]
    try:
        return shlex.split(typed)
    except ValueError:
        raise UsageError("a quotation mark is not closed", where=where, fix="'a value with spaces'") from None


def command_line(command: str, fields: Fields) -> str:
    """What a shell would be told, secrets left out."""
    told = {name: "***" if name in SECRETS and str(value).strip() else value for name, value in fields.items()}
    return shlex.join(["swift", *argv(command, told)])


# ---- what is wrong ----


def mistakes(command: str, fields: Fields) -> dict[str, str]:
    """Field -> what the command line would say of it; "" for what concerns no single field."""
    specs, found = specs_of(command), {}
    for name, raw in fields.items():
        if name not in specs:
            found[name] = str(UsageError("unknown option", where=f"--{name}"))
            continue
        try:
            words = _words(specs[name], raw)
            if words:
                convert(specs[name], _values(words), f"--{name}")
        except UsageError as error:
            found[name] = _said(error)
    return found or _together(command, fields)


def _values(words: list[str]) -> list[str]:
    return [words[0].partition("=")[2]] if len(words) == 1 else words[1:]


def _together(command: str, fields: Fields) -> dict[str, str]:
    try:
        config = parse(config_class(command), argv(command, fields)[1:]).config
        if isinstance(config, SftConfig):
            from swift.config.decide import decide_sft

            decide_sft(config, "model", None)
    except SwiftError as error:
        return blame(error_said(error), fields, specs_of(command))
    return {}


def blame(said: str, fields: Fields, specs: Mapping[str, Spec]) -> dict[str, str]:
    """Where to show an error: beside the option that it names, else beside the field whose value it names, else ""."""
    lookup = names_of(specs)
    head = said.partition("\n")[0]
    for name in FLAG.findall(head) or FLAG.findall(said):
        if lookup.get(name) in specs:
            return {lookup[name]: said.strip()}
    for name, raw in fields.items():
        values = (posixpath.normpath(v.partition("#")[0]) for v in re.split(r"\s+", str(raw)))  # as errors say paths
        if name in specs and any(len(value) > 3 and value in head for value in values):
            return {name: said.strip()}
    return {"": said.strip()}


def _said(error: SwiftError) -> str:
    return said(error.what) + (f"\n-> {said(error.fix)}" if error.fix else "")


# ---- YAML ----


def to_yaml(command: str, fields: Fields) -> str:
    """A file for `swift COMMAND FILE.yaml`; secrets are left out. UsageError where a field is wrong."""
    import yaml

    specs = specs_of(command)
    values = {}
    for name, raw in fields.items():
        words = _words(specs[name], raw) if name in specs and name not in SECRETS else []
        if words:
            value = convert(specs[name], _values(words), f"--{name}")
            values[name] = list(value) if isinstance(value, tuple) else value
    return f"# swift {command}\n" + yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def from_yaml(command: str, content: str) -> dict[str, str]:
    """Fields of a config file's text; every name that the command line knows, old spellings too."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "form.yaml"
        file.write_text(content, encoding="utf-8")
        try:
            if read_config_file(file)[1]:
                raise UsageError("the page sets no environment", where="ENV", fix="export it before swift web-ui")
            config = parse(config_class(command), ["--config", str(file)]).config
        except UsageError as error:
            raise UsageError(
                error.what, where=None if error.where == str(file) else error.where, fix=error.fix
            ) from None
    return fields_of(config)


def fields_of(config: Config) -> dict[str, str]:
    """What stands in the fields for a config: every option that was given."""
    return {name: shown(config.value(name)) for name in config.specs() if config.given(name)}


def from_argv(argv: Sequence[str]) -> dict[str, str]:
    """Fields of a command line (the command first); {} when this version doesn't understand it."""
    try:
        return fields_of(parse(config_class(argv[0]), list(argv[1:])).config)
    except UsageError:
        return {}


def from_words(command: str, words: Sequence[str]) -> dict[str, str]:
    """Fields of options as typed in a shell. UsageError where the command line has one."""
    return fields_of(parse(config_class(command), list(words)).config)


def from_record(command: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Fields that make a run's args.json again: the options that its user gave."""
    specs, options = specs_of(command), record.get("options")
    origins = record.get("origins")
    if not isinstance(options, dict) or not isinstance(origins, dict):
        return {}
    given = [
        n for n, o in origins.items() if isinstance(o, dict) and o.get("source") in ("command line", "config file")
    ]
    return {name: shown(options[name]) for name in given if name in specs and name in options}
