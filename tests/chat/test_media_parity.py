"""Rows with images through real processors and real templates, against `processor.apply_chat_template(tokenize=True)`.

Ids and pixel values are the processor's; what is learned is what the template writes for the assistant, no media token
among it; a row that is too long is dropped, however it is to be cut.
"""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import groupby
from typing import Any

import pytest

from swift.chat import ChatEncoder, RowDropped
from swift.errors import SwiftError, TemplateError
from tests import tiny_vlm
from tests.chat.conversations import conversation
from tests.chat.parity import Reference
from tests.chat.templates import ORIGINAL, control_tokens

KINDS = {
    "plain": {},
    "reasoning": {"reasoning": True},
    "tools": {"tools": True, "parallel": True},
    "tools_reasoning": {"tools": True, "reasoning": True},
}
OWN = [(name, None) for name in ("llava", "gemma3", "idefics3", "mllama", "qwen2_5_vl", "qwen3_vl")]
REAL = [
    ("llava", "llava_next"),
    ("gemma3", "gemma3"),
    ("idefics3", "idefics3"),
    ("idefics3", "smolvlm"),
    ("qwen2_5_vl", "qwen2_5_vl"),
    ("qwen3_vl", "qwen3_vl"),
    ("qwen3_vl", "qwen3_5_think"),
    ("qwen3_vl", "qwen3_6"),
]


@lru_cache
def processor(family: str, template: str | None) -> Any:
    _, _, made = (tiny_vlm.FAMILIES | tiny_vlm.MORE)[family]()
    tok = made.tokenizer
    if template is not None:
        source = ORIGINAL[template].read_text(encoding="utf-8")
        tok.add_tokens(sorted(control_tokens(source) - set(tok.get_vocab())), special_tokens=True)
        tok.chat_template = source
        tok.bos_token = tok.bos_token or "<|endoftext|>"
    made.chat_template = tok.chat_template
    tok.model_max_length = 10**9
    return made


def with_pictures(row: dict, seed: int, paths: list[str]) -> tuple[dict, list[dict]]:
    """The row with pictures placed by tags in some of the user's messages, and its messages with blocks instead."""
    rng = random.Random(seed)
    tagged, blocks, images = [], [], []
    for message in row["messages"]:
        count = rng.choice((0, 1, 2)) if message["role"] == "user" else 0
        if not images and message["role"] == "user":
            count = max(count, 1)
        if not count:
            tagged.append(message)
            blocks.append(message)
            continue
        chosen = [rng.choice(paths) for _ in range(count)]
        images += chosen
        cut = rng.randint(0, len(message["content"]))
        parts = [message["content"][:cut], message["content"][cut:]]
        tagged.append({**message, "content": parts[0] + "<image>" * count + parts[1]})
        pictures = [{"type": "image", "image": path} for path in chosen]
        texts = [[{"type": "text", "text": text}] if text else [] for text in parts]
        blocks.append({**message, "content": [*texts[0], *pictures, *texts[1]]})
    return {**row, "messages": tagged, "images": images}, blocks


class Pictured(Reference):
    """`Reference` through the processor: ids and tensors of a beginning of the conversation."""

    def __init__(self, encoder: ChatEncoder, made: Any, row: dict, blocks: list[dict]):
        self.made = made
        super().__init__(encoder, {**row, "messages": as_taken(blocks, made)})

    def render(self, count: int, prompt: bool = False) -> str | None:
        try:
            return self.made.apply_chat_template(
                self.messages[:count], tools=self.tools, tokenize=False, add_generation_prompt=prompt
            )
        except Exception:  # templates refuse in any way that Jinja and Python know
            return None

    def tensors(self, count: int) -> dict:
        return self.made.apply_chat_template(
            self.messages[:count], tools=self.tools, tokenize=True, return_dict=True, return_tensors="pt"
        )


def as_taken(blocks: list[dict], made: Any) -> list[dict]:
    """Texts as blocks too for templates that read nothing else."""
    if "is string" in made.chat_template:
        return blocks
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]}
        for m in blocks
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(60, 40), (30, 70), (56, 56)]
    return [tiny_vlm.picture(folder / f"{i}.png", i, size) for i, size in enumerate(sizes)]


def problem(made: Any, row: dict, blocks: list[dict]) -> str:
    """What is wrong with the row's examples; "" for nothing."""
    encoder = ChatEncoder(made.tokenizer, processor=made)
    reference = Pictured(encoder, made, row, blocks)
    outcome = encoder.encode_batch([row])[0]
    if isinstance(outcome, SwiftError):
        true = reference.full is None or any(
            reference.reply(turn) is None or reference.left_out(turn) for turn in reference.turns
        )
        return "" if true and isinstance(outcome, TemplateError) else f"refused: {outcome.what}"
    learned: list[int] = []
    for part in outcome:
        counts = [turn + 1 for turn in reference.turns] if "part" in part.notes else [len(reference.messages)]
        alone = ((count, reference.tensors(count)) for count in counts)
        count, tensors = next((c for c in alone if c[1]["input_ids"][0].tolist() == part.input_ids), (0, {}))
        if not count:
            return "the ids are not the processor's"
        again = encoder.processor.run(part.media["text"], {"images": part.media.get("images", [])})
        for name, value in again.tensors.items():
            if tensors[name].shape != value.shape or not (tensors[name] == value).all():
                return f"{name} is not the processor's"
        if any(part.labels[place] != -100 for place in again.placeholder_positions()):
            return "a media token is learned"
        turns = iter(reference.turns)
        for run in runs(part.labels):
            said = made.tokenizer.decode(run)
            turn = next((turn for turn in turns if behind(reference, turn, count, said)), None)
            if turn is None:
                return f"learned {said!r}, which no generation prompt is followed by"
            if run[-1] not in encoder.stop_token_ids and "no_end" not in part.notes:
                return f"no end is learned in {said!r}"
            learned.append(turn)
    straddled = any("straddled" in part.notes for part in outcome)
    return "" if straddled or sorted(learned) == reference.turns else f"learned {learned} of {reference.turns}"


def runs(labels: list[int]) -> list[list[int]]:
    """The stretches of tokens that are learned."""
    groups = groupby(labels, key=lambda label: label != -100)
    return [list(group) for is_learned, group in groups if is_learned]


def behind(reference: Reference, turn: int, count: int, said: str) -> bool:
    """Whether `said` is what the beginning of `count` messages has behind the turn's prompt, all of it."""
    prompt, text = reference.render(turn, True), reference.render(count)
    content = reference.messages[turn].get("content") or ""
    content = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return text.startswith(prompt + said) and content.strip() in said


SEEDS = [range(1), pytest.param(range(1, 6), marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", SEEDS, ids=["one", "more"])
@pytest.mark.parametrize(("family", "template"), OWN + REAL, ids=lambda value: value or "own")
def test_ids_pixels_and_labels(family, template, seeds, pictures):
    made = processor(family, template)
    for kind, options in KINDS.items():
        if "tools" in options and template is None:
            continue
        for seed in seeds:
            row, blocks = with_pictures(conversation(seed, **options), seed, pictures)
            assert (kind, seed, problem(made, row, blocks)) == (kind, seed, "")


@pytest.mark.parametrize("strategy", ["delete", "left", "right", "split"])
def test_media_are_never_cut(strategy, pictures):
    made = processor("qwen2_5_vl", "qwen2_5_vl")
    row, _ = with_pictures(conversation(5), 5, pictures)
    whole = ChatEncoder(made.tokenizer, processor=made).encode(row)
    for limit in (whole.length - 1, whole.length // 2, 8):
        encoder = ChatEncoder(made.tokenizer, processor=made, max_length=limit, truncation_strategy=strategy)
        outcome = encoder.encode_batch([row])[0]
        assert isinstance(outcome, RowDropped) and outcome.reason == "too_long"
    fitting = ChatEncoder(made.tokenizer, processor=made, max_length=whole.length, truncation_strategy=strategy)
    assert fitting.encode(row) == whole


def test_parts_have_their_share_of_the_pictures(pictures):
    made = processor("qwen3_vl", "qwen3_5_think")
    talk = [
        {"role": "user", "content": "<image>One?"},
        {"role": "assistant", "content": "Un.", "reasoning_content": "Hm."},
        {"role": "user", "content": "<image><image>Two?"},
        {"role": "assistant", "content": "Deux.", "reasoning_content": "Hm hm."},
    ]
    parts = ChatEncoder(made.tokenizer, processor=made).encode_parts({"messages": talk, "images": pictures})
    assert [part.media["images"] for part in parts] == [pictures[:1], pictures]
