"""Rows of benchmark files in any of their published layouts -> the fields that the task files refer to.

One function per shape. Each takes a row (column -> value) and returns a document; a row that holds no answer or
doesn't fit any layout is a ValueError that says what is missing. Knows nothing of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJ"


def choices(row: Row) -> dict[str, Any]:
    """A question with options: {question, choices, gold (index), letters}, and its subject if the row names one."""
    row = {str(name).lower(): value for name, value in row.items()}
    question, options, labels = _question(row), *_options(row)
    gold = _gold(row, options, labels)
    doc = {"question": question, "choices": options, "gold": gold, "letters": list(LETTERS[: len(options)])}
    return doc | ({"subject": str(row["subject"])} if row.get("subject") else {})


def _question(row: Row) -> str:
    for name in ("question", "question_stem", "goal", "query", "input"):
        value = row.get(name)
        if isinstance(value, Mapping):  # {"stem": ..., "choices": [...]}
            value = value.get("stem")
        if isinstance(value, str) and value.strip():
            # llm-foundry's files carry the beginning of the prompt
            return re.sub(r"^Question: ", "", value).rstrip("\n") if name == "query" else value
    raise ValueError("no question (columns question, query, goal or question_stem)")


def _options(row: Row) -> tuple[list[str], list[str]]:
    """(texts, labels) of the options."""
    found: Any = row.get("choices", row.get("endings"))
    if found is None and isinstance(row.get("question"), Mapping):
        found = row["question"].get("choices")
    if isinstance(found, str) and found.lstrip().startswith(("[", "{")):
        found = json.loads(found)
    if isinstance(found, Mapping):
        return [str(text) for text in found["text"]], [str(label) for label in found["label"]]
    if found is not None:
        found = list(found)
        if found and isinstance(found[0], Mapping):
            return [str(option["text"]) for option in found], [str(option["label"]) for option in found]
        texts = [str(option) for option in found]
        return texts, list(LETTERS[: len(texts)])
    for names in (("sol1", "sol2"), ("option1", "option2"), LETTERS.lower(), [f"choice{i}" for i in range(10)]):
        texts = [str(row[name]) for name in names if row.get(name) not in (None, "")]
        if len(texts) > 1:
            return texts, list(LETTERS[: len(texts)])
    raise ValueError("no options (columns choices, A B C D, or sol1 and sol2)")


def _gold(row: Row, options: list[str], labels: list[str]) -> int:
    """Index of the right option: from its label, its number (from 0), or its text."""
    for name in ("answerkey", "answer", "gold", "label", "target"):
        value = row.get(name)
        if value is None or value == "":
            continue
        text = str(value).strip()
        if name == "answerkey" and text in labels:
            return labels.index(text)
        if text.lower() in [label.lower() for label in labels]:
            return [label.lower() for label in labels].index(text.lower())
        if re.fullmatch(r"\d+", text):
            index = int(text)
            if index < len(options):
                return index
        elif text in options:
            return options.index(text)
        raise ValueError(f"the answer {text!r} is none of the {len(options)} options")
    raise ValueError("no answer (columns answer, answerKey, gold or label)")


def hellaswag(row: Row) -> dict[str, Any]:
    """The context is the activity and both parts of the scene; marks of the WikiHow part are taken out."""
    if "endings" not in row:
        return choices(row)
    context = f"{row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    if str(row.get("label", "")) == "":
        raise ValueError("no label: this is the test split, whose answers are not public")
    doc = {"question": _clean(f"{row['activity_label']}: {context}"), "choices": [_clean(e) for e in row["endings"]]}
    return {**doc, "gold": int(row["label"]), "letters": list(LETTERS[: len(row["endings"])])}


def _clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def winogrande(row: Row) -> dict[str, Any]:
    """{contexts (the sentence up to the blank, with each name in it), continuation, gold}."""
    if "context_options" in row:
        return {
            "contexts": list(row["context_options"]),
            "continuation": row["continuation"],
            "gold": int(row["gold"]),
        }
    before, blank, after = str(row["sentence"]).partition("_")
    if not blank or str(row.get("answer", "")) not in ("1", "2"):
        raise ValueError("no blank in the sentence, or no answer 1 or 2")
    names = (row["option1"], row["option2"])
    return {
        "contexts": [before + name for name in names],
        "continuation": after.strip(),
        "gold": int(row["answer"]) - 1,
    }


def boolq(row: Row) -> dict[str, Any]:
    """{passage, question (without its mark), choices: no and yes, gold}."""
    if "query" in row:
        parts = re.fullmatch(r"(?:Passage: )?(.*)\nQuestion: (.*?)\??\s*", str(row["query"]), re.DOTALL)
        if parts is None:
            raise ValueError("the query has no line that begins with 'Question:'")
        passage, question, gold = parts[1], parts[2], int(row["gold"])
    else:
        passage, question = str(row["passage"]), str(row["question"]).rstrip("?")
        answer = row.get("answer", row.get("label"))
        if answer is None:
            raise ValueError("no answer")
        gold = int(str(answer).strip().lower() in ("true", "1", "yes", "a"))
    return {"passage": passage, "question": question, "choices": ["no", "yes"], "gold": gold, "letters": ["A", "B"]}


def gsm8k(row: Row) -> dict[str, Any]:
    if "####" not in str(row.get("answer")):
        raise ValueError("the answer has no final line '#### number'")
    return {"question": str(row["question"]), "answer": str(row["answer"])}


def math(row: Row) -> dict[str, Any]:
    """{problem, answer}: the answer is the last \\boxed{...} of the solution where there is no column of its own."""
    problem = row.get("problem", row.get("question"))
    solution = str(row.get("solution", row.get("answer", "")))
    answer = last_boxed(solution)
    if answer is None:
        answer = str(row["answer"]) if row.get("answer") is not None else None
    if not problem or answer is None:
        raise ValueError("no problem, or no answer in \\boxed{}")
    return {"problem": str(problem), "answer": answer}


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} (or \\fbox), braces balanced; None where there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0:
        rest = re.match(r"\\boxed\s+([^$\s]+)", text[start:])
        return rest[1] if rest else None
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[opening + 1 : i]
    return None


def bbh(row: Row) -> dict[str, Any]:
    return {"input": str(row["input"]), "target": str(row["target"])}


def ifeval(row: Row) -> dict[str, Any]:
    """{prompt, instructions: JSON of [id, arguments] pairs}."""
    ids, arguments = list(row["instruction_id_list"]), list(row["kwargs"])
    arguments = [json.loads(a) if isinstance(a, str) else dict(a) for a in arguments]
    if len(ids) != len(arguments):
        raise ValueError(f"{len(ids)} instructions and {len(arguments)} sets of arguments")
    known = [{name: value for name, value in a.items() if value is not None} for a in arguments]
    return {"prompt": str(row["prompt"]), "instructions": json.dumps(list(zip(ids, known, strict=True)))}


def truthfulqa(row: Row) -> dict[str, Any]:
    """MC1: {choices, gold}; MC2: {all_choices, truths (1 for a true one)}."""
    if "mc1_targets" in row:
        one, many = row["mc1_targets"], row["mc2_targets"]
        return {
            "question": str(row["question"]),
            "choices": list(one["choices"]),
            "gold": list(one["labels"]).index(1),
            "letters": list(LETTERS[: len(one["choices"])]),
            "all_choices": list(many["choices"]),
            "truths": [int(label) for label in many["labels"]],
        }
    best = str(row["Best Answer"]).strip()
    true, false = _listed(row["Correct Answers"]), _listed(row["Incorrect Answers"])
    if not best or not false:
        raise ValueError("no best answer, or no incorrect answers")
    return {
        "question": str(row["Question"]).strip(),
        "choices": [best, *false],
        "gold": 0,
        "letters": list(LETTERS[: len(false) + 1]),
        "all_choices": [*true, *false],
        "truths": [1] * len(true) + [0] * len(false),
    }


def _listed(text: str) -> list[str]:
    """`one; another` as sentences that end with a full stop, as the data set's multiple-choice version has them."""
    parts = [part.strip() for part in str(text).split(";")]
    return [part if part.endswith(".") else f"{part}." for part in parts if part]


def humaneval(row: Row) -> dict[str, Any]:
    for name in ("prompt", "test", "entry_point"):
        if not row.get(name):
            raise ValueError(f"no {name}")
    return {name: str(row[name]) for name in ("prompt", "test", "entry_point")} | {"task_id": str(row.get("task_id"))}


def qa(row: Row) -> dict[str, Any]:
    """{query, response, system}: from query and response, or from a conversation whose last turn is the answer."""
    system = str(row.get("system") or "")
    if row.get("messages"):
        messages = row["messages"]
        messages = json.loads(messages) if isinstance(messages, str) else list(messages)
        system = next((str(m["content"]) for m in messages if m["role"] == "system"), system)
        users = [str(m["content"]) for m in messages if m["role"] == "user"]
        answers = [str(m["content"]) for m in messages if m["role"] == "assistant"]
        query, response = (users[-1] if users else ""), (answers[-1] if answers else row.get("response"))
    else:
        query = row.get("query", row.get("question", row.get("instruction")))
        response = row.get("response", row.get("answer", row.get("output")))
    if not query or response in (None, ""):
        raise ValueError("needs query and response, or messages that end with the assistant's answer")
    return {"query": str(query), "response": str(response), "system": system}


SHAPES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "choices": choices,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "boolq": boolq,
    "gsm8k": gsm8k,
    "math": math,
    "bbh": bbh,
    "ifeval": ifeval,
    "truthfulqa": truthfulqa,
    "humaneval": humaneval,
    "qa": qa,
}
