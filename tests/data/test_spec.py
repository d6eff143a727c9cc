import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.data.spec import parse_spec
from swift.errors import UsageError


def nothing_exists(_: str) -> bool:
    return False


@pytest.mark.parametrize(
    "text, name, subsets, rows, use_hf",
    [
        ("alpaca", "alpaca", (), None, None),
        ("AI-ModelScope/alpaca-gpt4-data-zh#500", "AI-ModelScope/alpaca-gpt4-data-zh", (), 500, None),
        ("swift/x:en/zh#20", "swift/x", ("en", "zh"), 20, None),
        ("HF::org/x:default", "org/x", ("default",), None, True),
        ("MS::org/x#3", "org/x", (), 3, False),
        ("ms::org/x", "org/x", (), None, False),
        (r"C:\data\x.jsonl#7", r"C:\data\x.jsonl", (), 7, None),
        ("D:/data/x.jsonl", "D:/data/x.jsonl", (), None, None),
        (r"C:\data:sub", r"C:\data", ("sub",), None, None),
        ("./a b/ü.csv", "./a b/ü.csv", (), None, None),
    ],
)
def test_parts(text, name, subsets, rows, use_hf):
    spec = parse_spec(text, exists=nothing_exists)
    assert (spec.name, spec.subsets, spec.rows, spec.use_hf) == (name, subsets, rows, use_hf)


def test_a_path_that_exists_is_taken_as_it_stands():
    there = {"a:b#c.jsonl", "x#5", "dir:1"}
    assert parse_spec("a:b#c.jsonl", exists=there.__contains__).name == "a:b#c.jsonl"
    assert parse_spec("x#5", exists=there.__contains__).rows is None
    spec = parse_spec("dir:1#9", exists=there.__contains__)
    assert (spec.name, spec.subsets, spec.rows) == ("dir:1", (), 9)


@pytest.mark.parametrize("text", ["x#", "x#many", "x#-3", "x#0", "x#1.5", "#5", ":sub", "", "HF::", "x#５"])
def test_nonsense_is_a_usage_error(text):
    with pytest.raises(UsageError) as error:
        parse_spec(text, exists=nothing_exists)
    assert error.value.fix


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        spec = parse_spec(text, exists=nothing_exists)
    except UsageError:
        return
    assert spec.name and (spec.rows is None or spec.rows > 0)
