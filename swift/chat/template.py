"""Which chat template a model is used with: the one asked for, its own, or a fallback that is said aloud.

Knows the catalog's templates and Jinja files; training, generation and export all choose here, so that they agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from swift.catalog import template_names, template_text
from swift.chat.render import compiled
from swift.config.chat import ChatOptions
from swift.errors import UsageError

log = logging.getLogger("swift")

FALLBACK = "chatml"
GIVEN = ("messages", "tools", "documents", "add_generation_prompt")  # what a conversation brings along


@dataclass(frozen=True)
class TemplateChoice:
    """`text` is Jinja, None for the tokenizer's own. `fallback` names a catalog template that nobody asked for."""

    text: str | None
    fallback: str | None = None
    why: str = ""


def choose_template(asked: str | None, own: object, family: str | None, model: Path) -> TemplateChoice:
    """`asked`: --template, a file or a catalog name. `own`: the tokenizer's template, if any. `family`: the catalog
    name that the model's family uses, if it is known. Raises UsageError for a name that is neither file nor template.
    """
    if asked is not None:
        if Path(asked).is_file():
            return TemplateChoice(Path(asked).read_text(encoding="utf-8"))
        if asked not in template_names():
            fix = f"a Jinja file, one of {', '.join(template_names())}, or the plugin that has it: --external_plugins"
            raise UsageError(f"no template {asked!r}", where="--template", fix=fix)
        return TemplateChoice(template_text(asked))
    if own:
        return TemplateChoice(None)
    name = family or FALLBACK
    log.warning("%s has no chat template: using %s (--template NAME or FILE chooses another)", model, name)
    return TemplateChoice(template_text(name), name, "its family's" if family else "the usual one")


def check_variables(chat: ChatOptions, source: str | None) -> None:
    """UsageError for a variable of the options that the chat template `source` doesn't read: it would do nothing."""
    asked = {"--template_kwargs": list(chat.template_kwargs or {})}
    if chat.enable_thinking is not None:
        asked["--enable_thinking"] = ["enable_thinking"]
    if source is None or not any(asked.values()):
        return
    read = {name for name in compiled(source).variables if name not in GIVEN and not name.endswith("_token")}
    for flag, names in asked.items():
        for name in names:
            if name not in read:
                fix = f"leave it out; the template reads {', '.join(sorted(read)) or 'no variable'}"
                raise UsageError(f"the chat template has no variable {name!r}", where=flag, fix=fix)
