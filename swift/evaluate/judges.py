"""Scoring functions of generated answers that lm-eval has no offline form of: mathematics, IFEval, HumanEval, texts.

Each takes a document and the model's outputs and returns metric -> value, as lm-eval's `process_results` does. `None`
under `unparsed` marks nothing; 1 there means that no answer could be read from the output. Texts are compared without
any download: words are runs of letters and digits, and every Chinese, Japanese or Korean character is a word.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swift.evaluate.rows import last_boxed

Judge = Callable[[Mapping[str, Any], Sequence[Any]], dict[str, Any]]
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힯]|[^\W_]+", re.UNICODE)


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def rouge_n(reference: Sequence[str], hypothesis: Sequence[str], n: int) -> float:
    """F1 of the n-grams in common (Lin, 2004)."""
    ours, theirs = _grams(hypothesis, n), _grams(reference, n)
    return _f1(sum((ours & theirs).values()), sum(ours.values()), sum(theirs.values()))


def rouge_l(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin, 2004)."""
    row = [0] * (len(reference) + 1)
    for word in hypothesis:
        diagonal = 0
        for i, other in enumerate(reference, 1):
            above = row[i]
            row[i] = diagonal + 1 if word == other else max(row[i], row[i - 1])
            diagonal = above
    return _f1(row[-1], len(hypothesis), len(reference))


def bleu_4(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Sentence BLEU (Papineni et al., 2002) with up to four-grams; a missing n-gram order counts half a match, then a
    quarter, and so on (Chen and Cherry, 2014, method 3), so that short answers don't all score 0.
    """
    if not hypothesis:
        return 0.0
    logs, shrink = 0.0, 1.0
    orders = min(4, len(hypothesis), len(reference))
    if orders == 0:
        return 0.0
    for n in range(1, orders + 1):
        ours, theirs = _grams(hypothesis, n), _grams(reference, n)
        matches: float = sum((ours & theirs).values())
        if not matches:
            if n == 1:
                return 0.0
            shrink /= 2
            matches = shrink
        logs += math.log(matches / sum(ours.values())) / orders
    brevity = min(0.0, 1 - len(reference) / len(hypothesis))
    return math.exp(brevity + logs)


def _grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


def judge_qa(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    reference, hypothesis = words(doc["response"]), words(results[0])
    return {
        "exact_match": float(" ".join(reference) == " ".join(hypothesis)),
        "rouge_1": rouge_n(reference, hypothesis, 1),
        "rouge_2": rouge_n(reference, hypothesis, 2),
        "rouge_l": rouge_l(reference, hypothesis),
        "bleu_4": bleu_4(reference, hypothesis),
        "unparsed": int(not results[0].strip()),
    }


def judge_math(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """The last boxed answer against the reference, both normalised by lm-eval's rules for MATH."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    answer = last_boxed(results[0])
    return {
        "exact_match": float(answer is not None and is_equiv(answer, doc["answer"])),
        "unparsed": int(answer is None),
    }


def judge_truthfulqa_mc2(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """The share of probability on the true answers (Lin et al., 2021, MC2)."""
    logprobs = [result[0] for result in results]
    top = max(logprobs)
    shares = [math.exp(value - top) for value in logprobs]
    true = sum(share for share, truth in zip(shares, doc["truths"], strict=True) if truth)
    return {"acc": true / sum(shares)}


def judge_ifeval(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    from swift.evaluate.ifeval import follows, follows_loosely

    instructions = json.loads(doc["instructions"])
    strict = [follows(name, arguments, results[0], doc["prompt"]) for name, arguments in instructions]
    loose = [follows_loosely(name, arguments, results[0], doc["prompt"]) for name, arguments in instructions]
    return {
        "prompt_level_strict_acc": float(all(strict)),
        "prompt_level_loose_acc": float(all(loose)),
        "inst_level_strict_acc": strict,
        "inst_level_loose_acc": loose,
        "unparsed": int(not results[0].strip()),
    }


def judge_humaneval(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    from swift.evaluate.sandbox import run_python

    program = (
        f"{code_of(doc['prompt'], results[0], doc['entry_point'])}\n\n{doc['test']}\n\ncheck({doc['entry_point']})\n"
    )
    outcome = run_python(program)
    return {"pass@1": float(outcome.passed), "unparsed": int(not results[0].strip())}


def code_of(prompt: str, output: str, entry_point: str) -> str:
    """The program in an output: a continuation of the prompt, or (of chat models) a function of its own, fenced or
    not.
    """
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", output, re.DOTALL)
    code = fenced[1] if fenced else output
    if re.search(rf"^\s*def\s+{re.escape(entry_point)}\b", code, re.MULTILINE):
        head = prompt[: prompt.index(f"def {entry_point}")] if f"def {entry_point}" in prompt else ""
        return f"{head}\n{code}"
    return prompt + code


def chosen_letter(text: str, letters: Sequence[str]) -> str | None:
    """The option that an answer chooses: the letter it begins with or names as its answer, the last such; None when
    it doesn't choose.
    """
    span = f"[{letters[0]}-{letters[-1]}]"
    begins = re.match(rf"\W*({span})(?![\w'’])", text)
    if begins:
        return begins[1]
    said = re.findall(
        rf"(?i:answer(?:\s+is)?|option|choice|boxed|答案(?:是|为|应该是)?|选择?)\s*[:：]?\s*[\s(（*{{\[]*({span})(?![A-Za-z])",
        text,
    )
    if said:
        return said[-1]
    alone = re.findall(rf"(?<![\w'’])({span})(?=[)）.:：])", text)
    return alone[0] if len(set(alone)) == 1 else None


def judge_letter(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    letter = chosen_letter(results[0], doc["letters"])
    return {"exact_match": float(letter == doc["letter"]), "unparsed": int(letter is None)}


def flat_mean(items: Sequence[Sequence[bool]]) -> float:
    """The mean over all instructions of all prompts."""
    flat = [float(value) for item in items for value in item]
    return sum(flat) / len(flat)


JUDGES: dict[str, Judge] = {
    "letter": judge_letter,
    "qa": judge_qa,
    "math": judge_math,
    "truthfulqa_mc2": judge_truthfulqa_mc2,
    "ifeval": judge_ifeval,
    "humaneval": judge_humaneval,
}
