"""Encoding without a chat template: the tokenizer's own ids, and every token of a long text in exactly one piece."""

from __future__ import annotations

import pytest

from swift.chat import ChatEncoder, RowDropped
from swift.data.plain import PlainEncoder
from swift.errors import DataError
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def rows(*pairs):
    return [{"messages": [{"role": role, "content": text} for role, text in pairs]}]


def test_the_ids_are_those_of_the_joined_text_and_its_end(tokenizer):
    (encoded,) = PlainEncoder(ChatEncoder(tokenizer)).encode_batch(
        rows(("user", "The capital "), ("assistant", "of France is Paris."))
    )[0]
    assert encoded.input_ids == tokenizer("The capital of France is Paris.")["input_ids"] + [tokenizer.eos_token_id]
    assert encoded.labels == encoded.input_ids


def test_a_system_prompt_goes_first_and_rows_of_text_are_taken_as_they_are(tokenizer):
    encoder = PlainEncoder(ChatEncoder(tokenizer), system="Be brief. ")
    given = rows(("user", "Who are you?")) + [{"text": "Paris."}] + rows(("system", "S"), ("user", "U"))
    texts = [tokenizer.decode(encoded.input_ids[:-1]) for (encoded,) in encoder.encode_batch(given)]
    assert texts == ["Be brief. Who are you?", "Paris.", "SU"]


def test_what_is_not_text_is_an_error_in_its_place(tokenizer):
    given = [{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, {"text": "b"}]
    first, second = PlainEncoder(ChatEncoder(tokenizer)).encode_batch(given)
    assert isinstance(first, DataError) and len(second) == 1


@pytest.mark.parametrize("strategy", ["delete", "left", "right", "split"])
def test_long_texts(tokenizer, strategy):
    text = "What is one plus one? " * 20
    whole = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    encoder = PlainEncoder(ChatEncoder(tokenizer, max_length=16, truncation_strategy=strategy))
    outcome = encoder.encode_batch(rows(("assistant", text)))[0]
    if strategy == "delete":
        assert isinstance(outcome, RowDropped) and outcome.length == len(whole)
        return
    expected = {
        "left": [whole[-16:]],
        "right": [whole[:16]],
        "split": [whole[i : i + 16] for i in range(0, len(whole), 16)],
    }
    assert [encoded.input_ids for encoded in outcome] == expected[strategy]
