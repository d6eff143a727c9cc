"""A row of any known format -> the canonical row; the format is found row by row.

The canonical row:
    messages            list of messages (see `messages`), never empty; a pre-training row has `text` (str) instead
    tools               list of {"type": "function", "function": {...}}; absent when there are none
    images, videos, audios   list of str: one per tag in the text, in order
    rejected_messages   the whole conversation with the answer not preferred; `messages` holds the preferred one
    positive_messages, negative_messages   lists of conversations that belong with `messages` or don't (see `pairs`)
    label               bool (wanted or unwanted answer), number, text or list (classification)
    objects, channel, chat_template_kwargs, margin   as given
    and, with keep_columns, every other column as given (what reward functions read)

Promises: a row that fits none of the formats raises `RowError` with a reason that names its columns and the known ones.
Knows nothing of files or tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift.data.media import KINDS, MediaSlots
from swift.data.messages import canonical_messages, is_number, kind_of, parse_json_text, text_of
from swift.data.pairs import PAIR_COLUMNS, as_query, candidates
from swift.data.rows import RowError

CONVERSATION = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "instruction", "question", "problem", "inputs", "input")
RESPONSE = ("response", "output", "solution", "answer", "targets", "target", "completion", "text", "content")
SYSTEM = ("system", "system_prompt", "system_message")
TEXT = ("text", "content", "response", "completion")
REJECTED = ("rejected_messages", "rejected_response", "rejected")
# columns of other tools' preference rows -> ours, where both are there
PREFERENCE_COLUMNS = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"),
)
TALKS = ("prompt", "query", "question", "completion", "chosen", *REJECTED)  # may be a conversation as JSON text (csv)
LABEL = ("label", "kto_tag")
TOOLS = ("tools", "functions")
MEDIA = {kind: (kind + "s", kind, kind + "_path") for kind in KINDS}
_MEDIA_COLUMNS = frozenset(name for names in MEDIA.values() for name in names)
KEPT = ("objects", "channel", "chat_template_kwargs", "margin")
IGNORED = "_-"  # `--columns '{"history": "_"}'`: don't look at this column
CANONICAL = ("messages", "tools", "images", "videos", "audios", "rejected_messages", "label", *KEPT)
COLUMNS = frozenset(
    [*CANONICAL, *CONVERSATION, *QUERY, *RESPONSE, *SYSTEM, *TEXT, *REJECTED, *LABEL, *TOOLS, *_MEDIA_COLUMNS]
    + ["chosen", "history", "context", "tag", *PAIR_COLUMNS, *sum(PREFERENCE_COLUMNS, ())]
)
ANSWERED = frozenset([*RESPONSE, *CONVERSATION, *LABEL, *REJECTED, "chosen"])
KNOWN = "messages | conversations | instruction, input, output | query, response, history | prompt, completion | "
KNOWN += "chosen, rejected | query, positive, negative | text"
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class ColumnMap:
    """How one data set names its columns: `rename` {its column: our column}; `roles` {its role: our role};
    `role_key`, `content_key`: the keys of its messages. `ranked`: a list of two answers is the preferred one and the
    other; `plain`: a query without an answer is a text to learn."""

    rename: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    role_key: str | None = None
    content_key: str | None = None
    ranked: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Canonical:
    """`format`: the name of the format that the row was in; `data`: the canonical row."""

    data: dict[str, Any]
    format: str


def canonical_row(
    value: Any,
    *,
    columns: ColumnMap | None = None,
    folder: Path | None = None,
    need_response: bool = True,
    keep_columns: bool = False,
    notes: Counter[str] | None = None,
) -> Canonical:
    """Turn one value of a data file into a canonical row, or raise RowError.

    `folder`: where relative media paths are looked for besides the working directory. `need_response`: a row with
    nothing to learn from is an error. `notes` counts what was read with a liberty (numbers as text, say).
    """
    if not isinstance(value, Mapping):
        raise RowError("the row is no object", f"it is {kind_of(value)}")
    columns, notes = columns or ColumnMap(), Counter() if notes is None else notes
    given = _opened(_as_preference(as_query(_renamed(value, columns)), columns.ranked), notes)
    if columns.plain and need_response and not ANSWERED & given.keys() and "query" in given:
        given["text"] = given.pop("query")
    if (text := _text_only(given)) is not None:
        return Canonical({"text": text, **_extra_columns(value, {"text"}, keep_columns, notes)}, "text")
    media = MediaSlots()
    messages, rejected, name = _conversation(given, columns, media, notes)
    _add_system(messages, given, media, notes)
    row: dict[str, Any] = {"messages": messages}
    tools = _tools(given)
    if tools:
        row["tools"] = tools
    if media.used or not _MEDIA_COLUMNS.isdisjoint(given):
        media.finish(row, {kind: _media_column(given, kind) for kind in KINDS}, folder or Path())
    if rejected is not None:
        if messages[0]["role"] == "system" != rejected[0]["role"]:
            rejected.insert(0, messages[0])
        row["rejected_messages"] = rejected
        notes["preference rows with two equal answers"] += rejected == messages
    others = candidates(given, notes)
    row.update(others)
    label = next((given[k] for k in LABEL if k in given), None)
    if label is not None:
        row["label"] = _label(label)
    row.update({k: given[k] for k in KEPT if k in given})
    row.update(_extra_columns(value, row, keep_columns, notes))
    if need_response and label is None and not others and not any(m["role"] == "assistant" for m in messages):
        if name == "prompt":
            raise RowError("no answer column", f"has: {', '.join(given)}; known: {', '.join(RESPONSE)}")
        raise RowError("no assistant message", "nothing to learn from")
    return Canonical(row, name)


def _renamed(value: Mapping[str, Any], columns: ColumnMap) -> dict[str, Any]:
    """Columns under our names, without nulls. A renamed column takes the place of all that would mean the same."""
    rename = {old: new for old, new in columns.rename.items() if old in value}
    named = {new: value[old] for old, new in rename.items() if new not in IGNORED and value[old] is not None}
    replaced: set[str] = set(named)
    for family in (CONVERSATION, QUERY, RESPONSE, SYSTEM, LABEL):
        if any(new in family for new in named):
            replaced.update(family)
    if "instruction" in named:
        replaced -= {"input"} - set(named)
    given = {str(k): v for k, v in value.items() if v is not None and k not in rename and k not in replaced}
    return given | named


def _as_preference(given: dict[str, Any], ranked: bool) -> dict[str, Any]:
    """The two answers under the names chosen and rejected, whatever their columns are called."""
    answers = given.get("response")
    if ranked and isinstance(answers, list) and len(answers) == 2:
        return {k: v for k, v in given.items() if k != "response"} | {"chosen": answers[0], "rejected": answers[1]}
    for names in PREFERENCE_COLUMNS:
        if all(name in given for name in names) and "chosen" not in given:
            sides = dict(zip(names, ("chosen", "rejected"), strict=True))
            return {sides.get(name, name): value for name, value in given.items()}
    return given


def _opened(given: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """Conversations that stand as JSON text where they could also be texts: only what is nothing else is opened."""
    for name in TALKS:
        text = given.get(name)
        if isinstance(text, str) and re.match(r"\s*\[\s*\{", text):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if all(isinstance(item, dict) and ("role" in item or "from" in item) for item in found):
                given = given | {name: found}
                notes["conversations read from JSON text"] += 1
    return given


def _text_only(given: Mapping[str, Any]) -> str | None:
    """The text of a pre-training row, or None when the row is of another kind."""
    key = next((k for k in TEXT if k in given), None)
    if key is None or any(k in given for k in (*CONVERSATION, *QUERY, *LABEL, *REJECTED, "chosen")):
        return None
    if "role" in given or "from" in given:
        raise RowError("a message outside a conversation", "a row holds a list of messages")
    if not isinstance(given[key], str):
        raise RowError("text is no text", f"column {key} is {kind_of(given[key])}")
    if not given[key].strip():
        raise RowError("empty text", f"column {key}")
    return given[key]


def _conversation(given: dict[str, Any], columns: ColumnMap, media: MediaSlots, notes: Counter[str]):
    """(messages, rejected messages or None, format name)"""
    if "chosen" in given and "rejected" in given:
        return _preference(given, columns, media, notes)
    key = next((k for k in CONVERSATION if given.get(k)), None)
    rejected_key = next((k for k in REJECTED if given.get(k)), None)
    if key:
        messages = canonical_messages(_retagged(given[key], columns), media, notes)
        name = "messages" if key == "messages" else "sharegpt"
    elif any(k in given for k in CONVERSATION):
        raise RowError("empty messages")
    else:
        messages, name = _question_answer(given, columns, media, notes)
    if rejected_key is None:
        return messages, None, name
    return messages, _rejected(given[rejected_key], rejected_key, messages, columns, notes), name + " with rejected"


def _retagged(value: Any, columns: ColumnMap) -> Any:
    """Messages with the keys and roles of a dataset_info entry under their usual names."""
    if not (columns.roles or columns.role_key or columns.content_key):
        return value
    value = parse_json_text(value, "messages")
    renamed = []
    for item in value if isinstance(value, list) else [value]:
        item = parse_json_text(item, "a message")
        if isinstance(item, Mapping):
            role = item.get(columns.role_key or "from", item.get("role"))
            content = item.get(columns.content_key or "value", item.get("content"))
            rest = {k: v for k, v in item.items() if k not in ("from", "value", columns.role_key, columns.content_key)}
            item = rest | {"role": columns.roles.get(role, role) if isinstance(role, str) else role, "content": content}
        renamed.append(item)
    return renamed


def _question_answer(given, columns: ColumnMap, media: MediaSlots, notes: Counter[str]):
    """Rows of single columns: alpaca, query/response, prompt/completion, a text with a label."""
    query_key = next((k for k in QUERY if k in given), None)
    response_key = next((k for k in RESPONSE if k in given), None)
    label_key = next((k for k in LABEL if k in given), None)
    if query_key is None:
        text_key = next((k for k in TEXT if k in given), None)
        if text_key is None or label_key is None:
            names = ", ".join(given) or "none but nulls"
            raise RowError("unknown columns", f"has: {names}; known: {KNOWN}; map yours with --columns")
        return _query(given, text_key, media, notes), "classification"
    history = _history(given.get("history"), media, notes)
    if isinstance(given[query_key], list):
        messages = history + canonical_messages(_retagged(given[query_key], columns), media, notes)
    else:
        messages = history + _query(given, query_key, media, notes)
    if response_key is None:
        return messages, "classification" if label_key else "prompt"
    name = {"instruction": "alpaca"}.get(query_key, "query-response")
    if response_key == "completion":
        name = "prompt-completion"
    _note_choice(given, QUERY, query_key, "question", notes)
    _note_choice(given, RESPONSE, response_key, "answer", notes)
    response = _only(given[response_key], response_key)
    if isinstance(response, (list, Mapping)):
        return messages + canonical_messages(_retagged(response, columns), media, notes), name
    text = media.take_tags(text_of(response, f"column {response_key}", notes))
    if not text.strip():
        raise RowError("empty response", f"column {response_key}")
    return [*messages, {"role": "assistant", "content": text}], name


def _only(value: Any, key: str) -> Any:
    """An answer in a list of one is that answer; of several texts none is more right than the others."""
    if isinstance(value, list) and value and all(isinstance(item, str) and item[:1] != "{" for item in value):
        if len(value) > 1:
            detail = f"column {key} has {len(value)}: write one row for each, or chosen and rejected"
            raise RowError("several answers in one row", detail)
        return value[0]
    return value


def _note_choice(given, names: tuple[str, ...], chosen: str, what: str, notes: Counter[str]) -> None:
    """Say which column was taken where several could be meant."""
    others = [k for k in names if k in given and k != chosen and not (chosen == "instruction" and k == "input")]
    if others:
        notes[f"the {what} read from column {chosen}, not from {', '.join(others)}"] += 1


def _query(given, query_key: str, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    parts = [text_of(given[query_key], f"column {query_key}", notes)]
    if query_key == "instruction":
        extra = next((k for k in ("input", "context") if k in given), None)
        parts += [text_of(given[extra], f"column {extra}", notes)] if extra else []
    query = media.take_tags("\n".join(part for part in parts if part))
    if not query.strip():
        raise RowError("empty query", f"column {query_key}")
    return [{"role": "user", "content": query}]


def _history(value: Any, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    """Earlier rounds: [[query, response], ...] or messages."""
    value = parse_json_text(value, "history") if value else []
    if not isinstance(value, list):
        raise RowError("history is no list", f"it is {kind_of(value)}")
    if all(isinstance(item, Mapping) for item in value):
        return canonical_messages(value, media, notes) if value else []
    messages = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("history is no list of pairs", f"entry {number}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if text is not None or role == "assistant":
                content = media.take_tags(text_of(text, f"history entry {number}", notes))
                messages.append({"role": role, "content": content})
    return messages


def _preference(given, columns: ColumnMap, media: MediaSlots, notes: Counter[str]):
    """Chosen and rejected answers: texts, messages or whole conversations, with the prompt in any form or inside."""
    aside = MediaSlots()
    chosen = _side(given["chosen"], "chosen", columns, media, notes)
    rejected = _side(given["rejected"], "rejected", columns, aside, notes)
    prompt: list[dict[str, Any]] = []
    if not (_is_whole(chosen) and _is_whole(rejected)):
        prompt_media = MediaSlots()
        prompt = _prompt(given, columns, prompt_media, notes)
        for kind in KINDS:
            media.slots[kind] = prompt_media.slots[kind] + media.slots[kind]
        if prompt and prompt[-1]["role"] == "assistant":
            raise RowError("the prompt of a preference row ends with an answer")
    return prompt + chosen, prompt + rejected, "preference"


def _is_whole(messages: list[dict[str, Any]]) -> bool:
    return messages[0]["role"] in ("system", "user")


def _prompt(given, columns: ColumnMap, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    key = next((k for k in CONVERSATION if given.get(k)), None)
    if key:
        return canonical_messages(_retagged(given[key], columns), media, notes)
    query_key = next((k for k in QUERY if k in given), None)
    if query_key is None:
        return []
    if isinstance(given[query_key], list):
        return canonical_messages(_retagged(given[query_key], columns), media, notes)
    return _history(given.get("history"), media, notes) + _query(given, query_key, media, notes)


def _side(value: Any, what: str, columns: ColumnMap, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    if isinstance(value, (list, Mapping)):
        messages = canonical_messages(_retagged(value, columns), media, notes)
    else:
        text = text_of(value, what, notes)
        messages = _transcript(text) or [{"role": "assistant", "content": media.take_tags(text)}]
    last = messages[-1]
    if last["role"] != "assistant" or not (last["content"].strip() or "tool_calls" in last):
        raise RowError(f"{what} holds no answer")
    return messages


def _transcript(text: str) -> list[dict[str, Any]]:
    """A conversation written as "\\n\\nHuman: ...\\n\\nAssistant: ..."; [] for any other text."""
    if not text.startswith("\n\nHuman:"):
        return []
    parts = _TURN.split(text)[1:]
    roles = ("user" if who == "Human" else "assistant" for who in parts[::2])
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2], strict=True)]


def _rejected(value, key: str, messages, columns: ColumnMap, notes: Counter[str]) -> list[dict[str, Any]]:
    """The conversation with its last answer replaced by the rejected one."""
    aside = MediaSlots()
    if isinstance(value, list) and all(isinstance(item, str) and item.lstrip()[:1] != "{" for item in value):
        if len(value) != 1:
            raise RowError("several rejected answers", f"{key} has {len(value)}: write one row for each")
        value = value[0]
    if key == "rejected_messages" or isinstance(value, (list, Mapping)):
        rejected = canonical_messages(_retagged(value, columns), aside, notes)
    else:
        rejected = [{"role": "assistant", "content": text_of(value, key, notes)}]
    if _is_whole(rejected):
        return rejected
    prompt = list(messages)
    if prompt[-1]["role"] != "assistant":
        raise RowError("a rejected answer without a preferred one")
    while prompt and prompt[-1]["role"] != "user":
        prompt.pop()
    return prompt + rejected


def _add_system(messages: list[dict[str, Any]], given, media: MediaSlots, notes: Counter[str]) -> None:
    value = next((given[k] for k in SYSTEM if k in given), None)
    if value is None or value == "":
        return
    if messages[0]["role"] == "system":
        if messages[0]["content"] != value:
            notes["system column ignored, the conversation has its own"] += 1
        return
    text = canonical_messages([{"role": "system", "content": value}], media, notes)[0]["content"]
    messages.insert(0, {"role": "system", "content": text})


def _tools(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = next((given[k] for k in TOOLS if k in given), None)
    value = parse_json_text(value, "tools") if value else []
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        tool = parse_json_text(tool, "tools")
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("a tool without a name", json.dumps(tool, default=str)[:80])
        if "input_schema" in function:  # Anthropic's name for the parameters
            function = {("parameters" if k == "input_schema" else k): v for k, v in function.items()}
        tools.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(function)})
    return tools


def _media_column(given: Mapping[str, Any], kind: str) -> list[Any]:
    value = next((given[k] for k in MEDIA[kind] if given.get(k)), None)
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parse_json_text(value, kind + "s")
    return [item for item in value if item is not None] if isinstance(value, list) else [value]


def _label(value: Any) -> Any:
    """A label; texts that spell a boolean or an integer (csv) become one."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if re.fullmatch(r"-?[0-9]{1,9}", text):
            return int(text)
        return float(text) if re.fullmatch(r"-?[0-9]{1,9}\.[0-9]{1,17}", text) else value
    if isinstance(value, (bool, list)) or is_number(value):
        return value
    raise RowError("unusable label", repr(value) if isinstance(value, float) else kind_of(value))


def _extra_columns(value: Mapping[str, Any], taken: Iterable[str], keep: bool, notes: Counter[str]) -> dict[str, Any]:
    """The columns under their own names, beside those of the canonical row; without those that JSON can't hold."""
    extra: dict[str, Any] = {}
    for name, content in value.items() if keep else ():
        if content is None or name in taken:
            continue
        try:
            json.dumps(content)
        except TypeError:
            notes[f"column {name} left out: it is of a type that JSON can't hold"] += 1
            continue
        extra[str(name)] = content
    return extra
