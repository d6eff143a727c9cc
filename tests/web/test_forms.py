"""A form says what the command line says: each option has a field, each value comes back, each mistake has a place."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.cli import main
from swift.config.parse import parse
from swift.config.registry import COMMANDS
from swift.errors import UsageError
from swift.web import forms

COMMANDS_WITH_FORMS = ("sft", "pt", "eval", "export", "deploy")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12).filter(
    lambda s: s.strip() and s.strip().lower() not in ("none", "null") and not s.strip().startswith("[")
)


def plain(spec):
    """Values that an option can have."""
    if spec.choices:
        return st.sampled_from(spec.choices)
    if spec.pattern:
        return st.from_regex(re.compile(spec.pattern, re.ASCII), fullmatch=True).map(str.strip)
    if spec.kind == "bool":
        return st.booleans()
    if spec.kind == "dict":
        return st.dictionaries(TEXT, st.integers() | TEXT, min_size=1, max_size=2)
    low, high = spec.low if spec.low is not None else -1000, spec.high if spec.high is not None else 10**6
    if spec.kind == "int":
        return st.integers(int(low), int(high))
    if spec.kind == "float":
        return st.floats(low, high, allow_nan=False).map(lambda x: float(f"{x:.12g}"))
    return TEXT.filter(lambda s: s not in spec.values)


@st.composite
def configs(draw, command):
    """A config with some options set, as a command line or a file would have made it."""
    specs = forms.specs_of(command)
    names = draw(st.lists(st.sampled_from(sorted(specs)), unique=True, max_size=8))
    values = {}
    for name in names:
        spec = specs[name]
        one = plain(spec)
        if spec.is_list:
            items = one.filter(lambda s: not str(s).startswith("-"))
            values[name] = tuple(draw(st.lists(items, min_size=1, max_size=3)))
        else:
            values[name] = draw(one)
    return forms.config_class(command)().replace(values, "command line")


@pytest.mark.parametrize("command", COMMANDS_WITH_FORMS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_stands_in_the_fields_is_what_the_command_parses(command, data):
    config = data.draw(configs(command))
    fields = forms.fields_of(config)
    again = parse(forms.config_class(command), forms.argv(command, fields)[1:]).config
    assert again == config


@pytest.mark.parametrize("command", COMMANDS_WITH_FORMS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_saved_file_fills_the_same_form(command, data):
    config = data.draw(configs(command))
    fields = {name: value for name, value in forms.fields_of(config).items() if name not in forms.SECRETS}
    loaded = forms.from_yaml(command, forms.to_yaml(command, fields))
    kept = parse(forms.config_class(command), forms.argv(command, fields)[1:]).config
    assert parse(forms.config_class(command), forms.argv(command, loaded)[1:]).config == kept


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("command", COMMANDS_WITH_FORMS)
def test_every_option_has_one_field_with_the_words_of_help(command, lang, capsys, monkeypatch):
    monkeypatch.setenv("SWIFT_LANG", lang)
    assert main([command, "--help"]) == 0
    page = "".join(capsys.readouterr().out.split())
    schema = forms.schema(command, lang)
    fields = [*schema["common"], *(field for group in schema["groups"] for field in group["fields"])]
    names = [field["name"] for field in fields]
    assert sorted(names) == sorted(forms.specs_of(command))
    assert all("".join(field["help"].split()) in page for field in fields)
    json.dumps(schema)


@pytest.mark.parametrize("command", [*forms.COMMON])
def test_common_options_exist(command):
    assert set(forms.COMMON[command]) <= set(forms.specs_of(command))


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"lora_rank": "eight"}, "lora_rank", "whole number"),
        ({"lora_dropout": "2"}, "lora_dropout", "at most 1"),
        ({"torch_dtype": "bf61"}, "torch_dtype", "bfloat16"),
        ({"dataset": "'a b"}, "dataset", "quotation mark"),
        ({"dataset": "--model x"}, "dataset", "dash"),
        ({"columns": "{a"}, "columns", "JSON"),
        ({"warmup_ratio": "0.1", "warmup_steps": "3"}, "warmup_ratio", "warmup_steps"),
        ({"no_such": "1"}, "no_such", "unknown option"),
    ],
)
def test_a_mistake_stands_beside_its_field(fields, place, words):
    found = forms.mistakes("sft", fields)
    assert list(found) == [place] and words in found[place]


def test_an_error_of_the_run_finds_the_field_whose_value_it_names():
    specs = forms.specs_of("sft")
    fields = {"model": "./models/nope", "dataset": "./rows.jsonl#5"}
    assert list(forms.blame("swift: ./models/nope: no such file or directory", fields, specs)) == ["model"]
    assert list(forms.blame("rows.jsonl:3: not JSON", fields, specs)) == ["dataset"]
    assert list(forms.blame("the disk is full", fields, specs)) == [""]


@pytest.mark.parametrize("command", ["no-such-command", "rm -rf", "", "rollout"])
def test_only_commands_of_ours_have_forms(command):
    if COMMANDS.get(command) is not None and COMMANDS[command].main is not None:
        pytest.skip("built by now")
    for call in (forms.argv, forms.mistakes, forms.to_yaml):
        with pytest.raises(UsageError):
            call(command, {})


def test_text_that_looks_like_a_flag_is_a_value():
    config = parse(
        forms.config_class("sft"), forms.argv("sft", {"system": "--model evil", "max_steps": " -1 "})[1:]
    ).config
    assert config.chat.system == "--model evil" and config.model.model is None and config.training.max_steps == -1


def test_secrets_are_neither_shown_nor_saved():
    fields = {"hub_token": "s3cret", "model": "m"}
    assert "s3cret" not in forms.command_line("sft", fields) + forms.to_yaml("sft", fields)
    assert "s3cret" in forms.argv("sft", fields)
