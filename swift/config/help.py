"""The help pages: all commands, and one command's options grouped by section with type, default and a line of help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift import __version__
from swift.config.aliases import REWRITES
from swift.config.planned import PLANNED
from swift.config.registry import COMMANDS
from swift.i18n import display_width, pad, text, wrap

if TYPE_CHECKING:  # the main page must not pay for the sections
    from swift.config.commands import Config
    from swift.config.options import Spec

LEFT = 38


def main_page() -> str:
    """What `swift --help` prints."""
    built = [name for name, command in COMMANDS.items() if command.main]
    later = [name for name, command in COMMANDS.items() if not command.main]
    lines = [
        f"swift {__version__}  {text('cli.tagline')}",
        "",
        f"{text('cli.usage')}: swift COMMAND [--option value ...]",
        "",
    ]
    lines.append(f"{text('cli.commands')}:")
    lines += [f"  {pad(name, 15)}{text(f'commands.{name}')}" for name in built]
    lines += ["", f"{text('cli.not_built')}:", f"  {', '.join(later)}", ""]
    lines.append(text("cli.more_help"))
    lines += ["", f"{text('cli.examples')}:"]
    lines += [f"  {example}" for example in EXAMPLES]
    return "\n".join(lines) + "\n"


EXAMPLES = (
    "swift sft --model ./models/Qwen3-4B --dataset my.jsonl --output_dir ./output",
    "swift infer --adapters ./output/v0-xxx/checkpoint-xxx",
    "swift export --adapters ./output/v0-xxx/checkpoint-xxx --merge_lora true --output_dir ./merged",
)


def command_page(command: str, config_class: type[Config], columns: int | None = None) -> str:
    """What `swift COMMAND --help` prints."""
    import shutil

    columns = columns or min(shutil.get_terminal_size((110, 24)).columns, 140)
    lines = [f"swift {command}  {text(f'commands.{command}')}", ""]
    lines.append(f"{text('cli.usage')}: swift {command} {_usage(command)}")
    section = None
    for spec in config_class.specs().values():
        if spec.section != section:
            section = spec.section
            lines += ["", f"{text(f'groups.{section}')}:"]
        lines += _option_lines(spec, columns)
    rewrites = [name for name in REWRITES if _applies(name, config_class)]
    if rewrites:
        lines += ["", f"{text('groups.rewrites')}:"]
        for name in rewrites:
            lines += _row(f"--{name} true|false", text(f"options.{name}"), columns)
    lines += ["", *wrap(text("cli.planned", None, count=len(PLANNED)), columns)]
    return "\n".join(lines) + "\n"


def _usage(command: str) -> str:
    positional = COMMANDS[command].positional
    if positional:
        return f"[{positional.upper()}] [--option value ...]"
    return "[config.yaml] [--option value ...]"


def _applies(rewrite: str, config_class: type[Config]) -> bool:
    specs = config_class.specs()
    return all(name in specs for name in REWRITES[rewrite](True))


def _default(spec: Spec) -> str:
    if spec.default is None or spec.default == ():
        return ""
    if isinstance(spec.default, tuple):
        return " ".join(map(str, spec.default))
    if isinstance(spec.default, bool):
        return str(spec.default).lower()
    return f"{spec.default:g}" if isinstance(spec.default, float) else str(spec.default)


def _option_lines(spec: Spec, columns: int) -> list[str]:
    shown = _default(spec)
    notes = [f"{text('cli.default')}: {shown}"] if shown else []
    if spec.aliases:
        notes.append(f"{text('cli.also')}: {', '.join(f'--{alias}' for alias in spec.aliases)}")
    words = text(f"options.{spec.name}") + (f" [{'; '.join(notes)}]" if notes else "")
    return _row(f"--{spec.name} {spec.type_name}", words, columns)


def _row(left: str, words: str, columns: int) -> list[str]:
    lines = wrap(words, max(columns - LEFT - 2, 30))
    first = f"  {left}"
    if display_width(first) >= LEFT:
        return [first, *(" " * LEFT + line for line in lines)]
    return [pad(first, LEFT) + lines[0], *(" " * LEFT + line for line in lines[1:])]
