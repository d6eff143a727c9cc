"""Every template with every kind of tokenizer over seeded conversations, against plain transformers (see parity.py).

By default a sample that differs by template; the slow tests run all of it, and real tokenizers where there are any:
`SWIFT_TEST_TOKENIZERS` names a folder of them, `SWIFT_TEST_TEMPLATES` one of further templates (*.jinja).
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from swift.chat import ChatEncoder
from tests.chat.conversations import conversation
from tests.chat.families import FAMILIES
from tests.chat.kinds import MADE, fitted_to, made, real, real_folders
from tests.chat.newer import NEWER
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
ALL = {f"odd-{name}": text for name, text in {**ODD, **FAMILIES, **NEWER}.items()} | REAL
if folder := os.environ.get("SWIFT_TEST_TEMPLATES"):
    ALL |= {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.jinja"))}


def differences(tok, name: str, seeds) -> list[tuple[str, int, str]]:
    encoder = ChatEncoder(tok)
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
    assert differences(fitted_to(made(MADE[number % len(MADE)]), ALL[name]), name, [number % 97]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_tokenizer(name, kind):
    assert differences(fitted_to(made(kind), ALL[name]), name, range(4)) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", real_folders(), ids=str)
def test_real_tokenizers(folder):
    """With all control tokens at once, because a copy of a big tokenizer takes longer than the rest."""
    base = real(folder)
    tok = fitted_to(base, "".join(ALL.values()))
    found = []
    if base.chat_template:
        own = fitted_to(base, base.chat_template)
        found += [("own", *one) for one in differences(own, "own", range(4))]
    for name, source in ALL.items():
        tok.chat_template = source
        found += [(name, *one) for one in differences(tok, name, range(2))]
    assert found == []
