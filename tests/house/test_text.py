"""Strings: both languages have the same keys, every option and group has its line, and nothing is left unused."""

import re

from swift.config.aliases import REWRITES
from swift.config.planned import PLANNED
from swift.config.registry import COMMANDS, load
from swift.i18n import LANGUAGES, display_width, strings, text, wrap


def all_specs():
    return {name: spec for c in COMMANDS.values() if c.config for name, spec in load(c.config).specs().items()}


def test_languages_have_the_same_keys_and_placeholders():
    tables = [{f"{s}.{k}": v for s, part in strings(lang).items() for k, v in part.items()} for lang in LANGUAGES]
    assert tables[0].keys() == tables[1].keys()
    for key in tables[0]:
        holes = [set(re.findall(r"(?<!\{)\{(\w+)\}", table[key])) for table in tables if not key.startswith("options.")]
        assert not holes or holes[0] == holes[1], key


def test_every_option_group_and_command_has_its_line_and_no_line_is_orphaned():
    for lang in LANGUAGES:
        table = strings(lang)
        assert set(table["options"]) == set(all_specs()) | set(REWRITES)
        assert set(table["commands"]) == set(COMMANDS)
        assert set(table["groups"]) == {spec.section for spec in all_specs().values()} | {"rewrites"}
        assert set(table["planned"]) == set(PLANNED.values())


def test_no_option_is_both_built_and_planned():
    names = set(all_specs()) | {alias for spec in all_specs().values() for alias in spec.aliases} | set(REWRITES)
    assert not names & set(PLANNED)


def test_language_follows_the_environment(monkeypatch):
    for variable in ("SWIFT_LANG", "SWIFT_UI_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(variable, raising=False)
    assert text("cli.usage") == "usage"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert text("cli.usage") == "用法"
    monkeypatch.setenv("SWIFT_LANG", "en")
    assert text("cli.usage") == "usage"


def test_wrapping_counts_wide_characters():
    lines = wrap("训练过程中每隔多少步保存一次检查点，数字小于 1 表示占总步数的比例。", 20)
    assert len(lines) > 3
    assert all(display_width(line) <= 22 for line in lines)  # closing punctuation may hang over by one character
    assert "".join(lines).replace(" ", "") == "训练过程中每隔多少步保存一次检查点，数字小于1表示占总步数的比例。"
