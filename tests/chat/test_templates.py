"""Every chat template of trl against plain transformers: ids, labels, prompts, or a refusal that is true."""

from __future__ import annotations

import pytest

from swift.chat import ChatEncoder
from swift.errors import TemplateError
from tests.chat.conversations import conversation
from tests.chat.templates import ORIGINAL, TRAINING, as_blocks, fitted

KINDS = {
    "plain": {},
    "empty": {"empty": True},
    "reasoning": {"reasoning": True},
    "tools": {"tools": True},
    "parallel": {"tools": True, "parallel": True},
    "tools_reasoning": {"tools": True, "reasoning": True},
}
BLOCKS_ONLY = {"idefics3", "smolvlm", "llava_next"}


def rows(name: str, kind: str, count: int = 3) -> list[dict]:
    made = [conversation(seed, **KINDS[kind]) for seed in range(count)]
    return [as_blocks(row) for row in made] if name in BLOCKS_ONLY else made


def rendered(tok, messages, tools, prompt=False) -> str | None:
    try:
        return tok.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except Exception:  # templates refuse in any way that Jinja and Python know
        return None


@pytest.mark.parametrize("name", ORIGINAL)
def test_ids_labels_and_prompts(name):
    tok = fitted(ORIGINAL[name].read_text(encoding="utf-8"))
    encoder = ChatEncoder(tok)
    for kind in KINDS:
        for row in rows(name, kind):
            check(tok, encoder, row)


def check(tok, encoder, row):
    messages, tools = row["messages"], row.get("tools")
    full = rendered(tok, messages, tools)
    try:
        encoded = encoder.encode(row)
    except TemplateError:
        assert full is None or refusal_is_true(tok, messages, tools, full)
        return
    assert full is not None
    ids = tok.apply_chat_template(messages, tools=tools)["input_ids"]
    assert encoded.input_ids == ids
    assert all(label in (-100, token) for label, token in zip(encoded.labels, ids, strict=True))
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = tok.apply_chat_template(messages[:index], tools=tools, add_generation_prompt=True)["input_ids"]
        assert encoder.prompt(messages[:index], tools) == prompt
        assert ids[: len(prompt)] == prompt or "straddled" in encoded.notes
        if not encoder_has_marks(tok):
            assert encoded.labels[len(prompt)] != -100
            assert encoded.labels[len(prompt) - 1] == -100 or "straddled" in encoded.notes


def encoder_has_marks(tok) -> bool:
    return "generation" in tok.chat_template.replace("add_generation_prompt", "")


def refusal_is_true(tok, messages, tools, full: str) -> bool:
    """Some prompt is not a prefix, or something that a message holds is not in its part of the text."""
    turns = assistants({"messages": messages})
    prompts = [rendered(tok, messages[:index], tools, prompt=True) for index in turns]
    if any(prompt is None or not full.startswith(prompt) for prompt in prompts):
        return True
    ends = [len(prompt) for prompt in prompts[1:]] + [len(full)]
    for index, prompt, end in zip(turns, prompts, ends, strict=True):
        part = full[len(prompt) : end]
        calls = messages[index].get("tool_calls") or []
        held = [messages[index].get("reasoning_content"), messages[index]["content"] if calls else None]
        held += [call["function"]["name"] for call in calls]
        if any(isinstance(piece, str) and piece.strip() not in part for piece in held):
            return True
    return False


@pytest.mark.parametrize("name", [name for name in ORIGINAL if name in TRAINING])
def test_labels_agree_with_trl_training_variants(name):
    """Where a variant renders the same text, its mask holds ours; what it has more is the header or comes after the
    end of the turn."""
    tok = fitted(ORIGINAL[name].read_text(encoding="utf-8"))
    variant = TRAINING[name].read_text(encoding="utf-8")
    encoder = ChatEncoder(tok)
    compared = 0
    for kind in ("plain", "tools"):
        for row in rows(name, kind, 6):
            try:
                encoded = encoder.encode(row)
                reference = tok.apply_chat_template(
                    row["messages"], tools=row.get("tools"), chat_template=variant, return_assistant_tokens_mask=True
                )
            except Exception:
                continue
            if reference["input_ids"] != encoded.input_ids:
                continue
            compared += 1
            mask = whole_characters(tok, encoded.input_ids, reference["assistant_masks"])
            prompts = [encoder.prompt_text(row["messages"][:i], row.get("tools")) for i in assistants(row)]
            labelled = [label != -100 for label in encoded.labels]
            for _, text in runs(tok, encoded.input_ids, mask, labelled):
                assert not text.strip() or any(text.strip() in p for p in prompts) or text.strip() == tok.eos_token
            for start, text in runs(tok, encoded.input_ids, labelled, mask):
                # a stop token that opens the environment's answer; a header that the prompt leaves to the model
                ids = encoded.input_ids[:start]
                assert tok.convert_tokens_to_ids(text) in encoder.stop_token_ids or tok.decode(ids) in prompts
    assert compared or name in NEVER_THE_SAME_TEXT


NEVER_THE_SAME_TEXT = {
    "glm4moe",  # the variant closes turns
    "deepseekv3", "deepseek_r1_distill", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra",
    "nemotron_3_5_lightning",  # refused: the prompt opens a thinking block that a plain reply doesn't have
}  # fmt: skip


def assistants(row) -> list[int]:
    return [i for i, message in enumerate(row["messages"]) if message["role"] == "assistant"]


def runs(tok, ids, inside, outside) -> list[tuple[int, str]]:
    """Start and text of each stretch of tokens that are `inside` and not `outside`."""
    chosen = [i for i, (a, b) in enumerate(zip(inside, outside, strict=True)) if a and not b]
    starts = [i for i in chosen if i - 1 not in chosen]
    ends = [i + 1 for i in chosen if i + 1 not in chosen]
    return [(a, tok.decode(ids[a:b])) for a, b in zip(starts, ends, strict=True)]


def whole_characters(tok, ids, mask) -> list[bool]:
    """transformers' mask ends on the first byte of a last character of several bytes; all of its bytes are meant."""
    offsets = tok(tok.decode(ids), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    whole = [bool(m) for m in mask]
    for i in range(1, len(whole)):
        whole[i] = whole[i] or (whole[i - 1] and offsets[i] == offsets[i - 1])
    return whole


@pytest.mark.parametrize("name", TRAINING)
def test_generation_blocks_are_the_mask(name):
    tok = fitted(TRAINING[name].read_text(encoding="utf-8"))
    encoder = ChatEncoder(tok)
    for kind in KINDS:
        for row in rows(name, kind):
            messages, tools = row["messages"], row.get("tools")
            try:
                encoded = encoder.encode(row)
            except TemplateError:
                full = rendered(tok, messages, tools)
                assert full is None or refusal_is_true(tok, messages, tools, full)
                continue
            reference = tok.apply_chat_template(messages, tools=tools, return_assistant_tokens_mask=True)
            assert encoded.input_ids == reference["input_ids"]
            mask = whole_characters(tok, encoded.input_ids, reference["assistant_masks"])
            assert [label != -100 for label in encoded.labels] == mask


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "gptoss", "glm4moe", "gemma4_v5"])
def test_parts_learn_each_turn_once_behind_its_prompt(name):
    """A template that drops earlier reasoning still gives every turn, exactly, in rows of their own."""
    tok = fitted(ORIGINAL[name].read_text(encoding="utf-8"))
    encoder = ChatEncoder(tok)
    for kind in ("reasoning", "tools_reasoning"):
        for row in rows(name, kind, 6):
            parts = encoder.encode_parts(row)
            starts = []
            for part in parts:
                starts += [
                    part.input_ids[:i]
                    for i in range(1, part.length)
                    if part.labels[i] != -100 and part.labels[i - 1] == -100
                ]
            wanted = [encoder.prompt(row["messages"][:i], row.get("tools")) for i in assistants(row)]
            assert sorted(starts) == sorted(wanted)
