"""Multiple-choice documents as questions that a chat model answers with a letter: what is asked where no
log-likelihoods can be had. Another measurement than the likelihood of the options, and reported as such.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from swift.evaluate.benchmarks import Benchmark
from swift.evaluate.rows import LETTERS

ASK = "Answer with the letter of the right option only."
ASK_ZH = "请只回答正确选项的字母。"


def lettered(doc: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """{prompt, letter, letters}. Options whose order gives the answer away are shuffled, always in the same way."""
    question, options, gold = _parts(doc)
    if benchmark.shape == "truthfulqa":
        order = list(range(len(options)))
        random.Random(question).shuffle(order)
        options, gold = [options[i] for i in order], order.index(gold)
    letters = (
        list(LETTERS[: len(options)]) if len(options) <= len(LETTERS) else [chr(65 + i) for i in range(len(options))]
    )
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    last = ASK_ZH if benchmark.description and not benchmark.description.isascii() else ASK
    return {"prompt": "\n".join([question, *lines, "", last]), "letter": letters[gold], "letters": letters}


def _parts(doc: Mapping[str, Any]) -> tuple[str, list[str], int]:
    if "contexts" in doc:
        options = [f"{context} {doc['continuation']}" for context in doc["contexts"]]
        return "Which sentence makes sense?", options, doc["gold"]
    question = doc["question"]
    if "passage" in doc:
        question = f"{doc['passage']}\n\n{question}?"
    return question, list(doc["choices"]), doc["gold"]
