"""Every template with every kind of tokenizer over seeded conversations, against plain transformers (see parity.py).

By default a sample that differs by template; the slow test runs all of it, and real tokenizers where there are any.
"""

from __future__ import annotations

import zlib

import pytest

from swift.chat import ChatEncoder
from tests.chat.conversations import conversation
from tests.chat.kinds import MADE, fitted_to, made, real, real_folders
from tests.chat.odd import ODD
from tests.chat.parity import compare
from tests.chat.templates import ORIGINAL, TRAINING, as_blocks

KINDS = {
    "plain": {},
    "empty": {"empty": True},
    "reasoning": {"reasoning": True},
    "tools": {"tools": True},
    "parallel": {"tools": True, "parallel": True},
    "tools_reasoning": {"tools": True, "reasoning": True},
}
BLOCKS_ONLY = {"idefics3", "smolvlm", "llava_next"}
REAL = {name: path.read_text(encoding="utf-8") for name, path in ORIGINAL.items()}
REAL |= {f"{name}_training": path.read_text(encoding="utf-8") for name, path in TRAINING.items()}
ALL = {**{f"odd-{name}": text for name, text in ODD.items()}, **REAL}


def differences(base, name: str, seeds) -> list[tuple[str, int, str]]:
    encoder = ChatEncoder(fitted_to(base, ALL[name]))
    found = []
    for kind, options in KINDS.items():
        for seed in seeds:
            row = conversation(seed, **options)
            row = as_blocks(row) if name.removesuffix("_training") in BLOCKS_ONLY else row
            if problem := compare(encoder, row):
                found.append((kind, seed, problem))
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_sample(name):
    number = zlib.crc32(name.encode())
    assert differences(made(MADE[number % len(MADE)]), name, [number % 97]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_tokenizer(name, kind):
    assert differences(made(kind), name, range(4)) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", real_folders(), ids=str)
def test_real_tokenizers(folder):
    assert [(name, found) for name in ALL if (found := differences(real(folder), name, range(2)))] == []
