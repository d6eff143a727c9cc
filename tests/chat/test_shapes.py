"""Rows encoded by the shape of their conversation are what plain encoding gives, whatever a template asks of a text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.chat import ChatEncoder
from swift.errors import SwiftError
from tests.chat.conversations import TEXTS, conversation
from tests.chat.kinds import MADE, fitted_to, made
from tests.chat.templates import ORIGINAL, fitted
from tests.tiny import CHATML

OPEN, CLOSE = "<|im_start|>{{ m.role }}\n", "<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def template(shown: str, before: str = "") -> str:
    return before + "{% for m in messages %}" + OPEN + shown + CLOSE + ASK


TRACED = {
    "plain": CHATML,
    "trim": template("{{ m.content | trim }}"),
    "strip": template("{{ m['content'].strip('x') }}{% if m.content.strip() %}!{% endif %}"),
    "joined": template("{{ '<' ~ m.content ~ '>' }}"),
    "macro": template("{{ show(m.content) }}", "{% macro show(c) %}[{{ c | trim }}]{% endmacro %}"),
    "captured": template("{% set c %}({{ m.content }}){% endset %}{{ c }}"),
    "asks": template(
        "{% if 'json' in m.content %}J{% elif m.content.startswith('Hello') %}H{% endif %}{{ m.content }}"
    ),
    "namespace": template(
        "{% set ns.last = m.content %}{{ ns.last }}{% if m.content == 'Hello!' %}?{% endif %}",
        "{% set ns = namespace(last='') %}",
    ),
    "blank": template("{{ m.content if m.content else 'nothing' }}"),
    "dated": "{{ strftime_now('%Y') }}" + CHATML,
    "system first": "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    + CHATML.replace("in messages", "in rest"),
}
NOT_TRACED = {
    "upper": template("{{ m.content | upper }}"),
    "method": template("{{ m.content.replace('e', 'E').title() }}"),
    "length": template("{{ m.content | length }} {{ m.content }}"),
    "json": template("{{ m.content | tojson }}{{ {'a': m} | tojson }}"),
    "cut": template("{{ m.content[:5] }}"),
    "format": template("{{ '%5s' % m.content }}{{ '{:>9}'.format(m.content) }}"),
    "searched": template("{{ 'yes' if m.content in 'Hello! and so on' else 'no' }}{{ m.content }}"),
    "list": template("{{ ['a', m.content] | join('-') }}{{ ', '.join([m.content]) }}"),
    "times": template("{{ m.content * 2 }}"),
    "joined trim": template("{{ (' ' + m.content + ' ') | trim }}{{ (m.content ~ 'x').strip() }}"),
    "order": template("{{ m.content < 'M' }}{{ m.content }}"),
    "printed": template("{{ [m.content] }}{{ m.content | int }}"),
    "split": template("{{ m.content.split(' ')[-1] }}{{ 'a b'.split(m.content) }}"),
    "as key": template("{{ {m.content: 1}.get('Hello!', 0) }}{{ m.content }}"),
}
HARD = [
    *TEXTS,
    "",
    "   ",
    "json",
    "Hello",
    "x<|im_end|>",
    "<|im_end|>  ",
    "</think>a",
    "<think>b</think>c",
    "a\U000f0000b",
]


def rows(texts, count: int = 30) -> list[dict]:
    made = [conversation(seed) for seed in range(6)]
    for i in range(count):
        picked = [texts[(i * 7 + k * (i // 3 + 1)) % len(texts)] for k in range(4)]
        talk = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(picked)]
        made.append({"messages": [[], [{"role": "system", "content": picked[3]}]][i % 2] + talk[: 2 + i % 3 // 2 * 2]})
    return made


def plainly(encoder: ChatEncoder, row: dict):
    try:
        return [encoder.encode(row)]
    except SwiftError as error:
        return error


def compare(encoder: ChatEncoder, made: list[dict]) -> None:
    for row, found in zip(made, encoder.encode_batch(made), strict=True):
        expected = plainly(encoder, row)
        if isinstance(expected, list):
            assert found == expected, row
        else:
            assert isinstance(found, SwiftError) or any("part" in one.notes or "composed" in one.notes for one in found)


def by_shape(encoder: ChatEncoder) -> int:
    return sum(len(shapes) for known in encoder._known.values() if known for shapes in known._known.values())


@pytest.mark.parametrize("name", [*TRACED, *NOT_TRACED])
def test_whatever_a_template_asks(name):
    encoder = ChatEncoder(fitted({**TRACED, **NOT_TRACED}[name]))
    compare(encoder, rows(HARD))
    compare(encoder, rows(HARD, 10))  # proofs are over now
    assert (by_shape(encoder) > 0) == (name in TRACED)


DEFAULT = {"qwen3", "llama3_1", "gemma3", "deepseekv3", "gptoss", "phi3", "qwen2_5_vl"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in DEFAULT else pytest.mark.slow) for n in ORIGINAL])
def test_real_templates(name):
    encoder = ChatEncoder(fitted(ORIGINAL[name].read_text(encoding="utf-8")))
    compare(encoder, rows(HARD, 16))


def test_weights_prefix_and_system_belong_to_the_shape():
    encoder = ChatEncoder(fitted(CHATML), system="Be brief.", response_prefix="Sure: ", max_length=60)
    made = rows(HARD, 20)
    for i, row in enumerate(made):
        row["messages"][-1].update([{}, {"loss": False}, {"loss_scale": 0.5}, {"loss": True}][i % 4])
    compare(encoder, made * 2)
    assert by_shape(encoder)


def test_a_word_initial_mark_that_only_the_first_stretch_gets_is_not_lost():
    from tokenizers import pre_tokenizers

    tok = fitted(CHATML)
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.ByteLevel(False)]
    )
    compare(ChatEncoder(tok), rows(HARD, 20))


TEXT = st.text(st.sampled_from("ab \n\t.<|>im_endé你\u0301") | st.characters(exclude_categories=("Cs",)), max_size=20)
SAMPLED = {name: ChatEncoder(fitted(text)) for name, text in [*TRACED.items(), *list(NOT_TRACED.items())[:4]]}


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, min_size=4, max_size=4), st.sampled_from(sorted(SAMPLED)))
def test_any_text(texts, name):
    compare(SAMPLED[name], rows(texts, 6)[6:])


@pytest.mark.parametrize("kind", MADE)
def test_texts_tokenized_together_are_tokenized_apart(kind):
    tok = fitted_to(made(kind), CHATML)
    tokens = ChatEncoder(tok)._tokens
    if tokens.controls("") is None:
        assert kind == "first"
        return
    texts = [*HARD, *tokens.added, *(f"a{one}b {one}" for one in tokens.added), "", " x ", ""]
    ids, starts, stops = tokens.separate(texts)
    apart = [ids[a:b].tolist() for a, b in zip(starts, stops, strict=True)]
    assert apart == [tok(text, add_special_tokens=False)["input_ids"] for text in texts]
