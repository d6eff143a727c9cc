"""argv and config files -> a command's config. Imports nothing heavy, writes nothing; every mistake is a UsageError.

`--name value`, `--name=value`, `--name a b c` (lists), `--flag` and `--flag true` (booleans), JSON for dicts and lists,
`1e-4`; a first argument or `--config` that is a YAML or JSON file, which the command line overrides.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from swift.config.aliases import REWRITES
from swift.config.commands import Config
from swift.config.options import Spec
from swift.config.planned import FIXED, PLANNED
from swift.errors import NotBuiltYet, UsageError

TRUE = {"true", "1", "yes", "on", "y", "t"}
FALSE = {"false", "0", "no", "off", "n", "f"}
NONE = {"none", "null"}
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Parsed:
    """A command's config and the environment variables that its config file asks for (`ENV:`)."""

    config: Config
    env: Mapping[str, str] = field(default_factory=dict)


def parse(config_class: type[C], argv: list[str], positional: str | None = None) -> Parsed:
    """Parse `argv` (without the command). `positional` names the option that words before the first option are for."""
    words, options = _split(argv)
    file_values: dict[str, Any] = {}
    env: dict[str, str] = {}
    if words and words[0].endswith(CONFIG_SUFFIXES) and positional is None:
        options.insert(0, ("config", [words.pop(0)]))
    if words and positional is not None:
        options.insert(0, (positional, words))
        words = []
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}", fix="options are written --name value; see --help")
    typed = [(name, values) for name, values in options if name != "config"]
    for _, paths in (o for o in options if o[0] == "config"):
        if len(paths) != 1:
            raise UsageError("takes one YAML or JSON file", where="--config", fix="--config FILE.yaml")
        file_values, env = read_config_file(Path(paths[0]))
    specs = config_class.specs()
    lookup = names_of(specs)
    config: Config = config_class()
    from_file = _collect(((k, v) for k, v in file_values.items()), specs, lookup, flag="")
    config = config.replace(from_file, "config file")
    from_line = _collect(_merge_repeats(typed, specs, lookup), specs, lookup, flag="--")
    return Parsed(config.replace(from_line, "command line"), env)


def names_of(specs: Mapping[str, Spec]) -> dict[str, str]:
    """Every name that an option answers to -> the option's own name."""
    lookup = {name: name for name in specs}
    for spec in specs.values():
        for alias in spec.aliases:
            lookup.setdefault(alias, spec.name)
    return lookup


def _split(argv: list[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Words before the first option, and the options with the words that follow each."""
    words: list[str] = []
    options: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            options.append((name.replace("-", "_"), [value] if equals else []))
        elif word.startswith("-") and len(word) == 2 and word[1].isalpha():
            raise UsageError(f"unknown option {word!r}", fix="options are written --name value; see --help")
        elif options:
            options[-1][1].append(word)
        else:
            words.append(word)
    return words, options


def _merge_repeats(
    typed: Iterable[tuple[str, list[str]]], specs: Mapping[str, Spec], lookup: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """`--dataset a --dataset b` means both; of a repeated single value the last one counts."""
    merged: dict[str, list[str]] = {}
    for name, values in typed:
        own = lookup.get(name, name)
        repeats = own in merged and own in specs and specs[own].is_list
        merged[own] = merged[own] + values if repeats else values
    return list(merged.items())


def read_config_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Options and `ENV` map of a YAML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"can't read the config file: {reason}", where=str(path)) from error
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UsageError(f"not valid JSON: {error}", where=str(path)) from error
    else:
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"not valid YAML: {' '.join(str(error).split())}", where=str(path)) from error
    if not isinstance(content, dict):
        raise UsageError("a config file maps option names to values", where=str(path), fix="model: ./models/NAME")
    content = dict(content)
    env = content.pop("ENV", None) or {}
    if not isinstance(env, dict):
        raise UsageError("ENV maps names of environment variables to values", where=str(path))
    return {str(k).removeprefix("--").replace("-", "_"): v for k, v in content.items()}, {
        k: str(v) for k, v in env.items()
    }


def _collect(
    items: Iterable[tuple[str, Any]], specs: Mapping[str, Spec], lookup: Mapping[str, str], flag: str
) -> dict[str, Any]:
    """Raw values -> typed values by option name."""
    result: dict[str, Any] = {}
    for name, raw in items:
        if name in REWRITES:
            meant = REWRITES[name](convert_bool(raw, f"{flag}{name}"))
            _require(meant, specs, name, flag)
            result.update(meant)
        elif name in lookup:
            spec = specs[lookup[name]]
            result[spec.name] = convert(spec, raw, f"{flag}{name}")
        elif name in FIXED:
            _check_fixed(name, raw, flag)
        elif name in PLANNED:
            _check_off(name, raw, flag)
        elif not _off_elsewhere(name, raw):
            raise unknown(name, lookup, flag)
    return result


def _off_elsewhere(name: str, raw: Any) -> bool:
    """Whether an option that only other commands have, and that is off there by itself, is typed to be off."""
    from swift.config.registry import commands_taking, option_of

    words = _words(raw)
    if not words or any(word not in FALSE for word in words):
        return False
    specs = [option_of(command, name) for command in commands_taking(name)]
    return bool(specs) and all(spec.kind == "bool" and spec.default is False for spec in specs)


def _require(meant: Mapping[str, Any], specs: Mapping[str, Spec], name: str, flag: str) -> None:
    missing = [option for option in meant if option not in specs]
    if missing:
        raise UsageError(f"stands for --{missing[0]}, which this command doesn't take", where=f"{flag}{name}")


def _words(raw: Any) -> list[str]:
    values = raw if isinstance(raw, list) else [raw]
    return [str(v).strip().lower() for v in values]


def _check_fixed(name: str, raw: Any, flag: str) -> None:
    if (_words(raw) or ["true"]) != [FIXED[name]]:
        raise NotBuiltYet(f"only {FIXED[name]!r} exists here", where=f"{flag}{name}", fix="leave it out")


def _check_off(name: str, raw: Any, flag: str) -> None:
    """A known option that isn't built: fine when it is switched off, an error when something is asked of it."""
    from swift.i18n import text

    off = FALSE | NONE | {""}
    words = _words(raw)
    if not words or any(word not in off for word in words):
        raise NotBuiltYet(text(f"planned.{PLANNED[name]}"), where=f"{flag}{name}", fix=text("cli.leave_out"))


def unknown(name: str, lookup: Mapping[str, str], flag: str = "--") -> UsageError:
    """The did-you-mean error for a name that no option of the command has."""
    from swift.config.registry import commands_taking

    near = difflib.get_close_matches(name, [*lookup, *REWRITES], n=3, cutoff=0.6)
    others = commands_taking(name)
    if others:
        fix = f"it is an option of: {', '.join(f'swift {c}' for c in others)}"
    elif near:
        fix = "did you mean " + " or ".join(f"{flag}{n}" for n in near) + "?"
    else:
        fix = "see --help for the options of this command"
    return UsageError("unknown option", where=f"{flag}{name}", fix=fix)


def convert(spec: Spec, raw: Any, where: str) -> Any:
    """One option's raw value (words of argv, or a YAML value) as its type."""
    if spec.is_list:
        return _convert_list(spec, raw, where)
    if spec.kind == "dict":
        return _convert_dict(raw, where)
    if isinstance(raw, list):
        if len(raw) > 1:
            raise UsageError(
                f"takes one value, got {len(raw)}: {' '.join(map(str, raw))}", where=where, fix=_example(spec)
            )
        raw = raw[0] if raw else (None if spec.kind != "bool" else "true")
        if raw is None:
            raise UsageError("needs a value", where=where, fix=_example(spec))
    if raw is None or (isinstance(raw, str) and raw.lower() in NONE):
        if spec.default is None or (spec.kind == "str" and "none" in spec.choices):
            return "none" if "none" in spec.choices else None
        raise UsageError(f"can't be {raw}", where=where, fix=_example(spec))
    return _convert_scalar(spec, raw, where)


def _convert_scalar(spec: Spec, raw: Any, where: str) -> Any:
    if isinstance(raw, str) and raw in spec.values:
        return spec.values[raw]
    if spec.kind == "bool":
        return convert_bool(raw, where)
    if spec.kind == "str":
        value: Any = str(raw).lower() if isinstance(raw, bool) else str(raw)
        if isinstance(raw, dict):  # of a config file
            value = json.dumps(raw)
        if spec.pattern and not re.fullmatch(spec.pattern, value, re.IGNORECASE):
            raise UsageError(f"{value!r} is not possible", where=where, fix=_example(spec))
    else:
        value = _number(spec, raw, where)
    if spec.choices and value not in spec.choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in spec.choices], n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(map(str, spec.choices))}"
        raise UsageError(f"{value!r} is not possible", where=where, fix=hint)
    return value


def _number(spec: Spec, raw: Any, where: str) -> int | float:
    kind = "a whole number" if spec.kind == "int" else "a number"
    if isinstance(raw, bool):
        raise UsageError(f"{raw!r} is not {kind}", where=where, fix=_example(spec))
    try:
        value = int(str(raw)) if spec.kind == "int" else float(str(raw))
    except ValueError as error:
        raise UsageError(f"{raw!r} is not {kind}", where=where, fix=_example(spec)) from error
    if value != value:
        raise UsageError(f"{raw!r} is not {kind}", where=where, fix=_example(spec))
    if spec.low is not None and value < spec.low:
        raise UsageError(f"{raw} is too small: at least {spec.low:g}", where=where)
    if spec.high is not None and value > spec.high:
        raise UsageError(f"{raw} is too large: at most {spec.high:g}", where=where)
    return value


def convert_bool(raw: Any, where: str) -> bool:
    if isinstance(raw, list):
        if len(raw) > 1:
            raise UsageError(f"takes true or false, got {' '.join(map(str, raw))}", where=where)
        raw = raw[0] if raw else "true"
    word = str(raw).strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    raise UsageError(f"{raw!r} is neither true nor false", where=where, fix=f"{where} true")


def _convert_dict(raw: Any, where: str) -> dict | None:
    if isinstance(raw, list):
        raw = " ".join(raw)
    if raw is None or (isinstance(raw, str) and raw.lower() in NONE):
        return None
    value = raw
    if isinstance(raw, str):
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise UsageError(
                f"not valid JSON: {error}", where=where, fix=f"""{where} '{{"key": "value"}}'"""
            ) from error
    if not isinstance(value, dict):
        raise UsageError("needs a JSON object", where=where, fix=f"""{where} '{{"key": "value"}}'""")
    return value


def _convert_list(spec: Spec, raw: Any, where: str) -> tuple[Any, ...]:
    if raw is None:
        return ()
    values = raw if isinstance(raw, list) else [raw]
    if len(values) == 1 and isinstance(values[0], str):
        only = values[0].strip()
        if only.startswith("[") and only.endswith("]"):
            try:
                values = json.loads(only)
            except ValueError as error:
                raise UsageError(f"not valid JSON: {error}", where=where) from error
        elif only.lower() in NONE and "none" not in spec.choices:
            return ()
    if not values and spec.default:
        raise UsageError("needs at least one value", where=where, fix=_example(spec))
    return tuple(_convert_scalar(spec, value, where) for value in values)


def _example(spec: Spec) -> str:
    samples = {"int": "8", "float": "1e-4", "bool": "true", "str": "TEXT", "dict": "'{}'"}
    sample = spec.default if spec.default not in (None, (), "") else (spec.choices or (samples[spec.kind],))[0]
    if isinstance(sample, tuple):
        sample = " ".join(map(str, sample))
    return f"for example --{spec.name} {str(sample).lower() if isinstance(sample, bool) else sample}"
