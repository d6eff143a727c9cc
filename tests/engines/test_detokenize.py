"""Streamed text is the text: pieces joined equal one decode, characters come whole, stop texts never show."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.engines.detokenize import Detokenizer, StopSearch
from tests import tiny

TEXTS = [
    "plain words",
    "你好，世界！请介绍一下。",
    "emoji 👩‍👩‍👧 flags 🇫🇷 and ✅",
    "mixed é ñ ü — “quotes”\n\ttab",
    "",
    " leading",
]


@pytest.fixture(scope="module")
def byte_level():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_like():
    """A tokenizer with metaspace, byte fallback and a stripped first space, as Llama 2 and Mistral have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "▁he",
        "llo",
        "▁wor",
        "ld",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    strip = decoders.Strip(content=" ", left=1)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def pieces_of(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_like"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text_and_no_character_is_broken(kind, text, request):
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 511), max_size=40))
def test_any_ids_of_a_byte_level_tokenizer_give_what_one_decode_gives(byte_level, ids):
    assert "".join(pieces_of(byte_level, ids)) == byte_level.decode(ids, clean_up_tokenization_spaces=False)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=20))
def test_any_text_through_byte_fallback_gives_what_one_decode_gives(sentencepiece_like, text):
    ids = sentencepiece_like(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(sentencepiece_like, ids)
    assert "".join(pieces) == sentencepiece_like.decode(ids, clean_up_tokenization_spaces=False)


def test_hidden_ids_leave_no_text(byte_level):
    ids = byte_level("hello<|im_end|>", add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(byte_level, hidden=[byte_level.eos_token_id])
    assert "".join(detokenizer.push(i) for i in ids) + detokenizer.flush() == "hello"


@settings(max_examples=300)
@given(
    text=st.text("abX", max_size=30),
    stops=st.lists(st.text("abX", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_text_ends_before_the_first_stop_however_it_is_cut(text, stops, cuts):
    """Reference: each prefix of the text, the first that contains a stop decides; of several at once the earliest
    start.
    """
    search, shown, rest = StopSearch(stops), "", text
    for cut in cuts:
        shown += search.push(rest[:cut])
        rest = rest[cut:]
        if search.found is not None or not rest:
            break
    if search.found is None:
        shown += search.flush()
        assert not any(stop in text for stop in stops)
        assert shown == text
    else:
        assert text.startswith(shown + search.found)
        assert not any(stop in shown for stop in stops)


def test_nothing_that_could_begin_a_stop_is_shown_early():
    search = StopSearch(["STOP"])
    assert [search.push(c) for c in "aSTaSTOPb"[:8]] == ["a", "", "", "STa", "", "", "", ""]
    assert search.found == "STOP"
