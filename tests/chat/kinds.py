"""Tokenizers of the kinds that models have, each trained here in a moment, with a template's control tokens.

Real ones are tried too where `SWIFT_TEST_TOKENIZERS` names folders of tokenizer.json (slow tests).
"""

from __future__ import annotations

import os
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.chat.templates import control_tokens
from tests.tiny import CORPUS, tokenizer

SPECIAL = ["<unk>", "<s>", "</s>"]


def fitted_to(base: Any, source: str) -> Any:
    """A copy of a tokenizer that has the template and its control tokens, and a BOS."""
    tok = deepcopy(base)
    tok.add_tokens(sorted({*control_tokens(source), "<s>"} - set(tok.get_vocab())), special_tokens=True)
    tok.bos_token = tok.bos_token or "<s>"
    tok.chat_template, tok.model_max_length = source, 10**9
    return tok


@lru_cache
def made(kind: str) -> Any:
    """bytes: byte-level BPE (GPT-2, Qwen, Llama 3). llama: SentencePiece BPE with a mark in front of every text
    (Llama 2). first: the mark in front of the first stretch only. gemma: no mark, bytes as a fallback. unigram:
    SentencePiece's other model (T5, XLNet), lower-casing nothing."""
    if kind == "bytes":
        return tokenizer(None)
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "llama":
            steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            inner.normalizer = normalizers.Sequence(steps)
        elif kind == "gemma":
            inner.normalizer = normalizers.Replace(" ", "▁")
            inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        else:
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + bytes_, show_progress=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.train_from_iterator(CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MADE = ("bytes", "llama", "first", "gemma", "unigram")


@lru_cache(maxsize=1)
def real(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def real_folders() -> list[Path]:
    """Folders with a tokenizer under the one that the environment names."""
    root = os.environ.get("SWIFT_TEST_TOKENIZERS")
    return sorted(path.parent for path in Path(root).rglob("tokenizer.json")) if root else []
