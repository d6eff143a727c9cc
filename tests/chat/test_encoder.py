"""What is learned, cut and refused, stated on small templates written here; the reference is plain transformers."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.catalog import template_text
from swift.chat import ChatEncoder, RowDropped, render_mask
from swift.chat.template import check_variables
from swift.config.chat import ChatOptions
from swift.errors import DataError, TemplateError, UsageError
from tests.chat.odd import ODD
from tests.chat.templates import ORIGINAL, fitted
from tests.tiny import CHATML, tokenizer

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}
AGAIN, SECOND = {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Well, yes."}
TALK = {"messages": [USER, REPLY, AGAIN, SECOND]}

EOS_AFTER_EARLIER = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}"
    "{% if not loop.last %}</s>{% endif %}{% endif %}{% endfor %}"
)
EOS_OPENS_NEXT = (
    "{% for m in messages %}{% if m.role == 'user' %}{% if not loop.first %}</s>{% endif %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
EOS_AT_THE_END = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}"
)
BY_INDEX = (
    "{% for i in range(messages | length) %}{% set m = messages[i] %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IN_A_MACRO = (
    "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CAPTURED = (
    "{% set all %}" + CHATML.split("{% if add")[0] + "{% endset %}{{ all }}{% if add" + CHATML.split("{% if add")[1]
)
COPIED = (
    "{% set ns = namespace(all=[]) %}{% for m in messages %}"
    "{% set ns.all = ns.all + [{'role': m.role, 'content': m.content}] %}{% endfor %}"
    + CHATML.replace("in messages", "in ns.all")
)


def encoder_of(template: str, **options) -> ChatEncoder:
    tok = fitted(template)
    tok.eos_token = options.pop("eos", "<|im_end|>")
    return ChatEncoder(tok, **options)


def learned(encoder: ChatEncoder, row: dict) -> list[str]:
    return [text for text, is_learned in render_mask(encoder, row) if is_learned]


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (CHATML, "<|im_end|>", ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]),
        (BY_INDEX, "<|im_end|>", ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]),
        (IN_A_MACRO, "<|im_end|>", ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]),
        (CAPTURED, "<|im_end|>", ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]),
        (COPIED, "<|im_end|>", ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]),
        (EOS_AFTER_EARLIER, "</s>", ["Hello there</s>", "Well, yes."]),
        (EOS_OPENS_NEXT, "</s>", ["Hello there</s>", "Well, yes."]),
        (EOS_AT_THE_END, "</s>", ["Hello there", "Well, yes.</s>"]),
    ],
)
def test_turns_and_their_ends(template, eos, expected):
    encoder = encoder_of(template, eos=eos)
    assert learned(encoder, TALK) == expected
    ids = encoder.tokenizer.apply_chat_template(TALK["messages"])["input_ids"]
    assert encoder.encode(TALK).input_ids == ids


def test_an_open_last_turn_is_closed_on_request():
    encoder = encoder_of(EOS_AFTER_EARLIER, eos="</s>", close_last_turn=True)
    encoded = encoder.encode(TALK)
    plain = encoder.tokenizer.apply_chat_template(TALK["messages"])["input_ids"]
    assert encoded.input_ids == [*plain, encoder.tokenizer.eos_token_id]
    assert encoded.labels[-1] == encoder.tokenizer.eos_token_id
    assert "no_end" in encoder_of(EOS_AFTER_EARLIER, eos="</s>").encode(TALK).notes


def test_a_stop_token_of_the_generation_config_ends_a_turn():
    template = ORIGINAL["glm4moe"].read_text(encoding="utf-8")
    tok = fitted(template)
    encoder = ChatEncoder(tok, stop_token_ids=[tok.convert_tokens_to_ids("<|user|>")])
    assert learned(encoder, TALK)[0].endswith("Hello there<|user|>")
    assert tok.convert_tokens_to_ids("<|user|>") in encoder.stop_token_ids
    assert tok.convert_tokens_to_ids("</tool_call>") not in encoder.stop_token_ids


def test_which_turns_are_learned():
    last = encoder_of(CHATML, loss_scale="last_round")
    assert learned(last, TALK) == ["Well, yes.<|im_end|>"]
    tools = {"messages": [USER, REPLY, AGAIN, REPLY, {"role": "tool", "content": "20"}, SECOND]}
    assert learned(last, tools) == ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]
    everything = encoder_of(CHATML, loss_scale="all").encode(TALK)
    assert everything.labels == everything.input_ids
    with pytest.raises(UsageError):
        encoder_of(CHATML, loss_scale="lastround")


def test_a_message_overrules_the_scheme():
    encoder = encoder_of(CHATML)
    row = {"messages": [USER, {**REPLY, "loss": False}, AGAIN, SECOND]}
    assert learned(encoder, row) == ["Well, yes.<|im_end|>"]
    assert encoder.encode(row).input_ids == encoder.encode(TALK).input_ids
    row = {"messages": [USER, {**REPLY, "loss_scale": 0.5}, AGAIN, SECOND]}
    encoded = encoder.encode(row)
    assert set(encoded.loss_scale) == {0.0, 0.5, 1.0}
    assert all((scale > 0) == (label != -100) for scale, label in zip(encoded.loss_scale, encoded.labels, strict=True))
    last = encoder_of(CHATML, loss_scale="last_round")
    assert len(learned(last, {"messages": [USER, {**REPLY, "loss": 1}, AGAIN, SECOND]})) == 2


def test_text_rows_are_learned_whole_and_closed():
    encoder = encoder_of(CHATML)
    encoded = encoder.encode({"text": "The capital of France is Paris."})
    ids = encoder.tokenizer("The capital of France is Paris.")["input_ids"]
    assert encoded.input_ids == encoded.labels == [*ids, encoder.tokenizer.eos_token_id]
    with pytest.raises(DataError):
        encoder.encode({"prompt": "x"})


def test_default_system_and_response_prefix():
    encoder = encoder_of(CHATML, system="Be brief.", response_prefix="Sure: ")
    assert encoder.prompt_text([USER]).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    own = {"role": "system", "content": "Own."}
    assert "Be brief." not in encoder.prompt_text([own, USER])
    encoded, prompt = encoder.encode({"messages": [USER, REPLY]}), encoder.prompt([USER])
    assert encoded.input_ids[: len(prompt)] == prompt and encoded.labels[len(prompt)] != -100
    assert learned(encoder, {"messages": [USER, REPLY]}) == ["Hello there<|im_end|>"]


def test_cuts_are_explicit():
    whole = encoder_of(CHATML).encode(TALK)
    size = whole.length
    with pytest.raises(RowDropped) as dropped:
        encoder_of(CHATML, max_length=size - 1).encode(TALK)
    assert (dropped.value.reason, dropped.value.length) == ("too_long", size)
    assert pickle.loads(pickle.dumps(dropped.value)).reason == "too_long"
    right = encoder_of(CHATML, max_length=size - 2, truncation_strategy="right").encode(TALK)
    assert right.input_ids == whole.input_ids[: size - 2] and right.truncated and right.lost_end
    assert not encoder_of(CHATML, max_length=size - 1, truncation_strategy="right").encode(TALK).lost_end
    left = encoder_of(CHATML, max_length=size - 3, truncation_strategy="left").encode(TALK)
    assert left.input_ids == whole.input_ids[3:] and left.truncated and not left.lost_end
    pieces = encoder_of(CHATML, max_length=10, truncation_strategy="split").encode_parts({"text": "one two " * 30})
    assert all(piece.length <= 10 for piece in pieces)
    assert (
        sum((piece.input_ids for piece in pieces), []) == encoder_of(CHATML).encode({"text": "one two " * 30}).input_ids
    )
    with pytest.raises(RowDropped) as nothing:
        encoder_of(CHATML, max_length=4, truncation_strategy="right").encode(TALK)
    assert nothing.value.reason == "nothing_left"


def test_a_batch_is_its_rows():
    encoder = encoder_of(CHATML, max_length=60)
    rows = [TALK, {"text": "a text"}, {"messages": [USER, {"role": "assistant", "content": "x " * 200}]}, {"x": 1}]
    first, text, dropped, broken = encoder.encode_batch(rows)
    assert first == [encoder.encode(TALK)] and text == [encoder.encode({"text": "a text"})]
    assert isinstance(dropped, RowDropped) and isinstance(broken, DataError)


def test_a_part_that_is_dropped_beside_one_that_is_used_is_counted():
    drops = CHATML.replace(
        "message['content'] +", "message['content'] + (' ' + message.get('thinking', '') if loop.last else '') +"
    )
    thinking = {"role": "assistant", "content": "Hello", "thinking": "x " * 200}
    row = {"messages": [USER, {**thinking, "thinking": "y"}, AGAIN, thinking]}
    assert len(encoder_of(drops).encode_batch([row])[0]) == 2
    (part,) = encoder_of(drops, max_length=60).encode_batch([row])[0]
    assert part.notes.count("part_too_long") == 1


def test_refusals_say_why():
    with pytest.raises(TemplateError, match="no chat template"):
        ChatEncoder(tokenizer(None)).encode(TALK)
    with pytest.raises(TemplateError, match="not valid Jinja"):
        ChatEncoder(tokenizer(), template="{% for %}").encode(TALK)
    with pytest.raises(TemplateError, match="roles must alternate"):
        encoder_of(ORIGINAL["gemma"].read_text()).encode({"messages": [USER, USER]})
    thinking = encoder_of(ORIGINAL["nemotron_3_nano"].read_text())
    with pytest.raises(TemplateError, match="enable_thinking=false suits it"):
        thinking.encode(TALK)
    assert encoder_of(ORIGINAL["nemotron_3_nano"].read_text(), enable_thinking=False).encode(TALK).trained
    with pytest.raises(DataError):
        encoder_of(CHATML).encode({"messages": [{"content": "no role"}]})


def test_tool_arguments_may_be_json_text():
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": "x", "n": 2}}}
    text = {"type": "function", "function": {"name": "search", "arguments": json.dumps({"query": "x", "n": 2})}}
    for name in ("gptoss", "glm4moe", "qwen3_5_think", "muse_glimmer"):
        encoder = encoder_of(ORIGINAL[name].read_text(encoding="utf-8"))
        rows = [{"messages": [USER, {"role": "assistant", "tool_calls": [c]}], "tools": []} for c in (call, text)]
        assert encoder.encode(rows[0]).input_ids == encoder.encode(rows[1]).input_ids
        assert encoder.encode(rows[0]).trained


def test_a_leading_newline_that_melts_into_the_header_is_noted():
    from tokenizers import Regex, pre_tokenizers

    tok = fitted(CHATML)
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+|[^\n]+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tok.add_tokens(["\n\n"])
    encoder = ChatEncoder(tok)
    row = {"messages": [USER, {"role": "assistant", "content": "\nHello"}]}
    encoded = encoder.encode(row)
    assert encoded.input_ids == tok.apply_chat_template(row["messages"])["input_ids"]
    assert "straddled" in encoded.notes
    assert learned(encoder, row) == ["\n\nHello<|im_end|>"]


def test_white_space_cut_by_what_follows_it_is_noted():
    """GPT-2's pattern makes one token of two line breaks at the end of a prompt, and two in front of a reply."""
    from tokenizers import models, pre_tokenizers

    tok = fitted(CHATML.replace("assistant\\n'", "assistant\\n\\n'").replace("+ '\\n' +", "+ '\\n\\n' +"))
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = json.loads(tok.backend_tokenizer.model.__getstate__())
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    vocab.setdefault("ĊĊ", max(tok.get_vocab().values()) + 1)
    tok.backend_tokenizer.model = models.BPE(vocab, [("Ċ", "Ċ"), *merges])
    encoder = ChatEncoder(tok)
    prompt = encoder.prompt([USER])
    assert tok.convert_ids_to_tokens(prompt)[-1] == "ĊĊ"
    encoded = encoder.encode(TALK)
    assert encoded.input_ids == tok.apply_chat_template(TALK["messages"])["input_ids"]
    assert encoded.input_ids[: len(prompt)] != prompt and "straddled" in encoded.notes
    assert encoder.encode_batch([TALK] * 4) == [[encoded]] * 4
    assert learned(encoder, TALK) == ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]
    assert encoder_of(CHATML).encode(TALK).notes == ()


def test_a_tokenizer_without_offsets():
    from transformers import ByT5Tokenizer

    tok = ByT5Tokenizer(additional_special_tokens=["<|im_start|>", "<|im_end|>"], extra_ids=0)
    tok.chat_template = CHATML
    encoder = ChatEncoder(tok)
    row = {"messages": [USER, {"role": "assistant", "content": "Grüße 你好"}, AGAIN, SECOND]}
    assert encoder.encode(row).input_ids == tok.apply_chat_template(row["messages"])["input_ids"]
    assert learned(encoder, row) == ["Grüße 你好<|im_end|>", "Well, yes.<|im_end|>"]


def test_the_shipped_chatml_is_chatml():
    assert learned(encoder_of(template_text("chatml")), TALK) == ["Hello there<|im_end|>", "Well, yes.<|im_end|>"]
    ids = encoder_of(template_text("chatml")).encode(TALK).input_ids
    assert ids == encoder_of(CHATML).encode(TALK).input_ids


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
ENCODERS = {
    name: encoder_of(ORIGINAL[name].read_text(encoding="utf-8"))
    for name in ("qwen2_5", "llama3_1", "gemma3")
    if name in ORIGINAL
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.sampled_from(sorted(ENCODERS) or ["none"]))
def test_any_text_is_encoded_as_transformers_does(turns, name):
    if name not in ENCODERS:
        pytest.skip("needs trl's templates")
    encoder = ENCODERS[name]
    messages = [m for u, a in turns for m in ({"role": "user", "content": u}, {"role": "assistant", "content": a})]
    encoded = encoder.encode({"messages": messages})
    assert encoded.input_ids == encoder.tokenizer.apply_chat_template(messages)["input_ids"]
    for i in range(1, len(messages), 2):
        prompt = encoder.prompt(messages[:i])
        assert encoded.input_ids[: len(prompt)] == prompt or "straddled" in encoded.notes
    ends = sum(encoded.labels[i] != -100 and encoded.labels[i] in encoder.stop_token_ids for i in range(encoded.length))
    assert ends >= len(turns)


@pytest.mark.parametrize("name", ["r1_style", "think_opened"])
def test_reasoning_is_learned_where_the_prompt_opens_it(name):
    """DeepSeek-R1's habit: the prompt ends inside <think>, and the template shows no reasoning of any turn."""
    encoder = ChatEncoder(fitted(ODD[name]))
    inline = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nYes."}
    apart = {"role": "assistant", "content": "Yes.", "reasoning_content": "Well."}
    for reply in (inline, apart):
        for messages in ([USER, reply], [USER, inline, AGAIN, reply]):
            parts = encoder.encode_parts({"messages": messages})
            prompt = encoder.prompt(messages[:-1])
            assert parts[-1].input_ids[: len(prompt)] == prompt
            last = [text for text, is_learned in shown_parts(encoder, parts) if is_learned]
            assert last == ["Well.\n</think>\n\nYes.<|im_end|>"] * (len(messages) // 2)
    with pytest.raises(TemplateError, match="give the reply its reasoning"):
        encoder.encode_parts(TALK)


@pytest.mark.parametrize("content", ["", "<think>\nWell.\n</think>"])
def test_reasoning_without_an_answer_is_refused(content):
    encoder = ChatEncoder(fitted(ODD["r1_style"]))
    reply = {"role": "assistant", "content": content, "reasoning_content": "Well."}
    with pytest.raises(TemplateError):
        encoder.encode_parts({"messages": [USER, reply]})


def shown_parts(encoder, parts) -> list[tuple[str, bool]]:
    found: list[tuple[list[int], bool]] = []
    for part in parts:
        found.append(([], False))
        for token, label in zip(part.input_ids, part.labels, strict=True):
            if found[-1][1] != (label != -100):
                found.append(([], label != -100))
            found[-1][0].append(token)
    return [(encoder.decode(ids), is_learned) for ids, is_learned in found]


def test_variables_that_the_template_does_not_read():
    source = ODD["glm_thinking"]
    check_variables(ChatOptions(enable_thinking=False), source)
    check_variables(ChatOptions(template_kwargs={"date_string": "today"}), ODD["dated"])
    check_variables(ChatOptions(), None)
    with pytest.raises(UsageError, match="no variable 'enable_thinking'"):
        check_variables(ChatOptions(enable_thinking=False), CHATML)
    with pytest.raises(UsageError, match="date_string"):
        check_variables(ChatOptions(template_kwargs={"date": "today"}), ODD["dated"])
    encoder = ChatEncoder(fitted(ODD["dated"]), template_kwargs={"date_string": "26 Jul 2024"})
    assert "Today Date: 26 Jul 2024" in encoder.prompt_text([USER])
