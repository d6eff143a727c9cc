"""--preserve_thinking and --add_non_thinking_prefix, against transformers' own rendering of what they mean."""

from __future__ import annotations

import pytest

from swift.chat import ChatEncoder
from swift.errors import TemplateError
from tests.chat.families import FAMILIES
from tests.chat.odd import ODD
from tests.chat.templates import ORIGINAL, fitted
from tests.tiny import CHATML


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def reply(text: str, thought: str | None = None) -> dict:
    return {"role": "assistant", "content": text, **({"reasoning_content": thought} if thought else {})}


def inline(text: str, thought: str) -> dict:
    return reply(f"<think>\n{thought}\n</think>\n\n{text}")


THOUGHTFUL = [user("One?"), reply("Un.", "Hm one."), user("Two?"), reply("Deux.", "Hm two.")]
INLINE = [user("One?"), inline("Un.", "Hm one."), user("Two?"), inline("Deux.", "Hm two.")]
BARE = [user("One?"), reply("Un."), user("Two?"), reply("Deux.")]
CLEARED = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and "
    "(loop.index0 > ns.last or (clear_history is defined and not clear_history)) %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BY_VARIABLE = {
    "qwen3_6": (ORIGINAL["qwen3_6"].read_text("utf-8"), {"preserve_thinking": True}),
    "nemotron": (ORIGINAL["nemotron_3_nano"].read_text("utf-8"), {"truncate_history_thinking": False}),
    "lfm": (FAMILIES["lfm"], {"keep_past_thinking": True}),
    "cleared": (CLEARED, {"clear_history": False}),
}


def texts(encoder: ChatEncoder, messages: list[dict]) -> list[tuple[str, list[str]]]:
    """Each example as (text, what is learned of it)."""
    found = []
    for part in encoder.encode_parts({"messages": messages}):
        runs: list[list[int]] = []
        for i, label in enumerate(part.labels):
            if label != -100:
                if not i or part.labels[i - 1] == -100:
                    runs.append([])
                runs[-1].append(label)
        found.append((encoder.decode(part.input_ids), [encoder.decode(run) for run in runs]))
    return found


@pytest.mark.parametrize("name", BY_VARIABLE)
def test_earlier_reasoning_is_kept_by_whatever_variable_the_template_has(name):
    source, variables = BY_VARIABLE[name]
    talk = INLINE if name == "lfm" else THOUGHTFUL
    tok = fitted(source)
    encoder = ChatEncoder(tok, preserve_thinking=True)
    (part,) = encoder.encode_parts({"messages": talk})
    assert part.input_ids == tok.apply_chat_template(talk, **variables)["input_ids"]
    assert "Hm one." in encoder.decode(part.input_ids) and "part" not in part.notes
    kept = tok.apply_chat_template(talk[:3], add_generation_prompt=True, tokenize=False, **variables)
    assert encoder.prompt_text(talk[:3]) == kept and "Hm one." in kept
    dropped = ChatEncoder(tok, preserve_thinking=False).prompt_text(talk[:3])
    assert dropped == tok.apply_chat_template(talk[:3], add_generation_prompt=True, tokenize=False)


def test_a_template_that_cannot_keep_it_says_so():
    for name, says in (("qwen3", "drops the reasoning"), ("deepseek_r1_distill", "shows no reasoning")):
        with pytest.raises(TemplateError, match=says):
            ChatEncoder(fitted(ORIGINAL[name].read_text("utf-8")), preserve_thinking=True)


@pytest.mark.parametrize(
    ("source", "talk"), [(CHATML, INLINE), (FAMILIES["seed"], THOUGHTFUL), (FAMILIES["command_a"], THOUGHTFUL)]
)
def test_earlier_reasoning_is_taken_out_where_the_template_shows_it(source, talk):
    tok = fitted(source)
    encoder = ChatEncoder(tok, preserve_thinking=False)
    prompt = tok.apply_chat_template([*BARE[:2], talk[2]], tokenize=False, add_generation_prompt=True)
    assert encoder.prompt_text(talk[:3]) == prompt
    parts = texts(encoder, talk)
    assert [text for text, _ in parts] == [
        tok.apply_chat_template(talk[:2], tokenize=False),
        tok.apply_chat_template([*BARE[:2], *talk[2:]], tokenize=False),
    ] or source == FAMILIES["command_a"]  # which shows reasoning only beside calls
    kept = ChatEncoder(tok, preserve_thinking=True).encode({"messages": talk})
    assert kept.input_ids == tok.apply_chat_template(talk)["input_ids"]


def test_a_row_may_say_it_of_itself():
    tok = fitted(CHATML)
    row = {"messages": INLINE, "chat_template_kwargs": {"preserve_thinking": False}}
    assert len(ChatEncoder(tok).encode_parts(row)) == 2
    assert len(ChatEncoder(tok, preserve_thinking=False).encode_parts({**row, "chat_template_kwargs": {}})) == 2
    assert len(ChatEncoder(tok).encode_parts({"messages": INLINE})) == 1


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe"])
def test_replies_without_reasoning_as_the_non_thinking_mode_has_them(name):
    tok = fitted(ORIGINAL[name].read_text("utf-8"))
    encoder = ChatEncoder(tok, add_non_thinking_prefix=True)
    parts = encoder.encode_parts({"messages": BARE})
    assert all("non_thinking" in part.notes for part in parts)
    found = {}
    for text, learned in texts(encoder, BARE):
        at = 0
        for one in learned:
            at = text.index(one, at)
            found[one] = text[:at]
    for count, said in ((1, "Un."), (3, "Deux.")):
        prompt = tok.apply_chat_template(
            BARE[:count], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert [before for one, before in found.items() if said in one] == [prompt]


def test_one_conversation_of_both_modes():
    tok = fitted(ORIGINAL["qwen3"].read_text("utf-8"))
    encoder = ChatEncoder(tok, add_non_thinking_prefix=True)
    talk = [*THOUGHTFUL[:2], *BARE[2:]]
    parts = texts(encoder, talk)
    assert parts == [
        (tok.apply_chat_template(talk[:2], tokenize=False), ["<think>\nHm one.\n</think>\n\nUn.<|im_end|>"]),
        (tok.apply_chat_template(talk, tokenize=False, enable_thinking=False), ["Deux.<|im_end|>"]),
    ]
    with pytest.raises(TemplateError, match="two modes"):
        encoder.encode({"messages": talk})
    with pytest.raises(TemplateError, match="no mode without thinking"):
        ChatEncoder(fitted(CHATML), add_non_thinking_prefix=True)


def test_no_empty_thinking_is_added():
    tok = fitted(ORIGINAL["qwen3"].read_text("utf-8"))
    encoder = ChatEncoder(tok, add_non_thinking_prefix=False)
    start = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    second = "Un.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\nDeux.<|im_end|>\n"
    assert texts(encoder, BARE) == [(start + second, ["Un.<|im_end|>", "Deux.<|im_end|>"])]
    assert encoder.encode({"messages": BARE}).input_ids == encoder.encode_parts({"messages": BARE})[0].input_ids
    given = [user("One?"), reply("<think>\n\n</think>\n\nUn.")]  # the data's own stays
    assert texts(encoder, given)[0][1] == ["<think>\n\n</think>\n\nUn.<|im_end|>"]
    assert texts(encoder, THOUGHTFUL[:2])[0][1] == ["<think>\nHm one.\n</think>\n\nUn.<|im_end|>"]
    with pytest.raises(TemplateError, match="opens its reasoning.*|leave out --add_non_thinking_prefix false"):
        ChatEncoder(fitted(ORIGINAL["qwen3_5_think"].read_text("utf-8")), add_non_thinking_prefix=False).encode_parts(
            {"messages": BARE}
        )
    plain = ChatEncoder(fitted(CHATML), add_non_thinking_prefix=False)
    assert (
        plain.encode({"messages": BARE}).input_ids == ChatEncoder(fitted(CHATML)).encode({"messages": BARE}).input_ids
    )


@pytest.mark.parametrize(
    ("source", "first"), [(ODD["glm_thinking"], ""), (ORIGINAL["glm4moe"].read_text("utf-8"), "\n")]
)
def test_empty_thinking_in_history_too_gives_a_row_for_each_reply(source, first):
    encoder = ChatEncoder(fitted(source), add_non_thinking_prefix=False)
    parts = texts(encoder, BARE)
    assert [learned for _, learned in parts] == [[f"{first}Un."], [f"{first}Deux."]]
    assert "<think>" not in parts[0][0]
