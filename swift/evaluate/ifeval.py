"""IFEval's 25 kinds of verifiable instructions (Zhou et al., 2311.07911): was each of them followed?

Strict: the answer as it is. Loose: also without its first line, its last line, and its asterisks, any of which may
follow. The rules are those of the published checkers with one difference: sentences and capitalised words are found
by rules below and not by NLTK's downloaded model, which can differ by a sentence after an unusual abbreviation.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from swift.errors import DataError, MissingPackage

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|Inc|Ltd|Co|No|Fig|approx|[A-Z](?:\.[A-Z])*)\.$"
)
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|[。！？]+")
TOKEN = re.compile(r"[\w'’-]+")
FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def follows(name: str, arguments: Arguments, answer: str, prompt: str) -> bool:
    """Whether a non-empty answer follows the instruction; DataError for a kind that IFEval doesn't have."""
    if name not in CHECKS:
        raise DataError(f"unknown instruction {name!r}", where="IFEval", fix=f"one of {', '.join(sorted(CHECKS))}")
    if name == "combination:repeat_prompt" and not arguments.get("prompt_to_repeat"):
        arguments = {**arguments, "prompt_to_repeat": prompt}
    return bool(answer.strip()) and CHECKS[name](answer, arguments)


def follows_loosely(name: str, arguments: Arguments, answer: str, prompt: str) -> bool:
    lines = answer.split("\n")
    cuts = [lines[i:j] for i, j in itertools.product((0, 1), (len(lines), len(lines) - 1))]
    forms = ["\n".join(cut).strip() if len(cut) < len(lines) else answer for cut in cuts]
    return any(follows(name, arguments, form, prompt) for text in forms for form in (text, text.replace("*", "")))


def sentences(text: str) -> int:
    """Number of sentences; text after the last full stop counts as one."""
    count, start = 0, 0
    for end in SENTENCE_END.finditer(text):
        piece = text[start : end.end()]
        if ABBREVIATION.search(piece.rstrip()) and text[end.end() :].strip():
            continue
        count += bool(piece.strip())
        start = end.end()
    return count + bool(text[start:].strip())


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _language(text: str) -> str | None:
    """ISO 639-1 code; None when the text has nothing to tell it by."""
    try:
        import langdetect
    except ImportError as error:
        raise MissingPackage("IFEval asks for the language of answers", fix="pip install langdetect") from error
    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None


def _response_language(text: str, a: Arguments) -> bool:
    return _language(text) in (a["language"], None)


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1]
    filled = [part for part in parts if part.strip()]
    return all(part.strip() for part in inner) and len(filled) == a["num_paragraphs"]


def _first_word(text: str, a: Arguments) -> bool:
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    nth = a["nth_paragraph"]
    if nth > count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == a["num_paragraphs"] and word == str(a["first_word"]).lower()


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"]
    known = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    return bool(re.search(known.get(marker, rf"\s*{re.escape(marker.lower())}.*$"), text.lower(), re.MULTILINE))


def _bullets(text: str, a: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == a["num_bullets"]


def _highlights(text: str, a: Arguments) -> bool:
    single = [x for x in re.findall(r"\*[^\n\*]*\*", text) if x.strip("*").strip()]
    double = [x for x in re.findall(r"\*\*[^\n\*]*\*\*", text) if x[2:-2].strip()]
    return len(single) + len(double) >= a["num_highlights"]


def _sections(text: str, a: Arguments) -> bool:
    marks = re.split(rf"\s?{a['section_spliter']}\s?\d+\s?", text)
    return len(marks) - 1 >= a["num_sections"]


def _json(text: str, a: Arguments) -> bool:
    body = re.sub(r"^```(?:json)?", "", text.strip(), flags=re.IGNORECASE).removesuffix("```").strip()
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _two_responses(text: str, a: Arguments) -> bool:
    parts = text.split("******")
    filled = [part.strip() for part in parts if part.strip()]
    inner_empty = any(not part.strip() for part in parts[1:-1])
    return not inner_empty and len(filled) == 2 and filled[0] != filled[1]


def _capital_words(text: str, a: Arguments) -> bool:
    count = sum(word.isupper() for word in TOKEN.findall(text))
    return _related(count, a["capital_relation"], a["capital_frequency"])


def _keywords(text: str, a: Arguments) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in a["keywords"])


def _keyword_frequency(text: str, a: Arguments) -> bool:
    return _related(len(re.findall(a["keyword"], text, re.IGNORECASE)), a["relation"], a["frequency"])


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in a["forbidden_words"])


def _letters(text: str, a: Arguments) -> bool:
    return _related(text.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"])


def _ends(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower())


def _quoted(text: str, a: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


def _words(text: str, a: Arguments) -> bool:
    return _related(len(re.findall(r"\w+", text)), a["relation"], a["num_words"])


CHECKS: dict[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": lambda t, a: _related(sentences(t), a["relation"], a["num_sentences"]),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda t, a: len(re.findall(r"\[.*?\]", t)) >= a["num_placeholders"],
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda t, a: any(answer in t for answer in FIXED_ANSWERS),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda t, a: any(x.strip("<> ") for x in re.findall(r"<<[^\n]+>>", t)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda t, a: t.isupper() and _language(t) in ("en", None),
    "change_case:english_lowercase": lambda t, a: t.islower() and _language(t) in ("en", None),
    "punctuation:no_comma": lambda t, a: "," not in t,
}
