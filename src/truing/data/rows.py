"""Reading one row: its columns as text, messages, labels and margins, with every fault as a RowError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from truing.core.trees import Origin
from truing.data.examples import Demonstration, Message, Messages, Role, Words
from truing.data.faults import RowError
from truing.data.records import Record

_ROLES: Mapping[str, Role] = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
_TOOL_ROLES = {"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"}

_LABELS: Mapping[object, bool] = {
    **dict.fromkeys((True, 1, "true", "1", "yes", "up", "good", "desirable", "thumbs_up", "like", "👍"), True),
    **dict.fromkeys(
        (False, 0, -1, "false", "0", "-1", "no", "down", "bad", "undesirable", "thumbs_down", "dislike", "👎"), False
    ),
}
"""A label has to be one of these; 1 and 1.0 are one key."""

LABEL_NAMES = ("label", "kto_tag", "thumbs", "feedback")
"""Columns that may hold a label; the last two are those of logs."""


def has(record: Record, column: str) -> bool:
    """True where the row has a value in the column; null counts as none."""
    return record.values.get(column) is not None


def missing(record: Record, column: str) -> NoReturn:
    """Say that a column has no value in this row."""
    if column == "rejected" and has(record, "chosen"):
        raise RowError(record.origin, "no rejected answer", CHOSEN_ALONE)
    raise RowError(record.origin, f"no {column}", f"the row has no '{column}'")


CHOSEN_ALONE = (
    "record has 'chosen' but no 'rejected'; DPO needs both. "
    "For single rated answers use kto (columns prompt, completion and label)"
)


def text(record: Record, column: str) -> str:
    """A column as text, which may be empty."""
    if not has(record, column):
        missing(record, column)
    return _as_text(record.values[column], f"'{column}'", record.origin)


def optional_text(record: Record, column: str) -> str:
    """A column as text; empty where the row has no value."""
    return text(record, column) if has(record, column) else ""


def answer_text(record: Record, column: str) -> str:
    """A column as text that has to say something."""
    words = text(record, column)
    if not words.strip():
        raise RowError(record.origin, "empty answer", _blank(column, words))
    return words


def words(record: Record, column: str) -> Words:
    """A column as text or as messages, whichever it holds."""
    if not has(record, column):
        missing(record, column)
    value = record.values[column]
    return (
        messages(record, column) if isinstance(value, (list, tuple)) else _as_text(value, f"'{column}'", record.origin)
    )


def messages(record: Record, column: str) -> Messages:
    """A column as messages: objects with role and content, or from and value; blank system messages fall away."""
    if not has(record, column):
        missing(record, column)
    value = record.values[column]
    if not isinstance(value, (list, tuple)):
        raise RowError(
            record.origin, "wrong type", f"'{column}' holds {_kind(value)} where a list of messages is expected"
        )
    turns = [message(item, f"'{column}' message {n}", record.origin) for n, item in enumerate(value, start=1)]
    return tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())


def message(value: object, where: str, origin: Origin) -> Message:
    """One message from an object with role and content, or from and value."""
    if not isinstance(value, dict):
        raise RowError(origin, "wrong type", f"{where} is {_kind(value)}; expected an object with role and content")
    name = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if not isinstance(name, str):
        raise RowError(origin, "unknown role", f"{where} has no role; expected user, assistant or system")
    key = name.strip().lower()
    if key in _TOOL_ROLES or (content is None and value.get("tool_calls")):
        raise RowError(
            origin,
            "tool turns",
            f"{where} is a tool turn ('{short(name)}'); tool use is not trained here",
        )
    if key not in _ROLES:
        raise RowError(
            origin, "unknown role", f"{where} has the role '{short(name)}'; expected user, assistant or system"
        )
    return Message(_ROLES[key], _as_text(content, f"the content of {where}", origin))


def as_messages(value: Words, role: Role) -> Messages:
    """Raw text as one message, messages as they are."""
    if isinstance(value, str):
        return (Message(role, value),) if value.strip() else ()
    return value


def demonstration(turns: Messages, origin: Origin) -> Demonstration:
    """A whole conversation: what comes before the first answer, and the rest."""
    check_prompt(turns, origin)
    first = next((n for n, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
    if turns[-1].role != "assistant":
        raise RowError(
            origin, "no answer at the end", f"the last message is from the {turns[-1].role}, not the assistant"
        )
    check_answers(turns[first:], origin)
    return Demonstration(turns[:first], turns[first:], origin)


def check_prompt(turns: Messages, origin: Origin) -> None:
    """A conversation begins with a user's turn, after any system message."""
    opening = next((turn.role for turn in turns if turn.role != "system"), None)
    if opening == "assistant":
        raise RowError(origin, "no user turn", "the conversation begins with the assistant; expected a user turn first")
    if opening is None or not any(turn.role == "user" and turn.content.strip() for turn in turns):
        raise RowError(origin, "no user turn", "the conversation has no user turn with text")


def check_answers(turns: Messages, origin: Origin) -> None:
    """Every assistant turn says something, and there is one."""
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError(origin, "empty answer", "there is no answer from the assistant")
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
        raise RowError(origin, "empty answer", "an assistant turn is blank; an answer has to have text")


def check_one_answer(value: Words, name: str, origin: Origin) -> None:
    """What is compared or judged is text that is not blank, or assistant messages only."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError(origin, "empty answer", _blank(name, value))
        return
    others = [turn.role for turn in value if turn.role != "assistant"]
    if others:
        raise RowError(
            origin,
            "no single answer",
            f"'{name}' holds a {others[0]} turn after the common beginning; expected the answer alone",
        )
    check_answers(value, origin)


def label(record: Record) -> bool:
    """The row's label, read strictly: a value that is not clearly good or bad is a fault."""
    name = next((name for name in LABEL_NAMES if has(record, name)), None)
    if name is None:
        missing(record, "label")
    value = record.values[name]
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, (str, bool, int, float)) or key not in _LABELS:
        raise RowError(
            record.origin,
            "unknown label",
            f"'{name}' is {short(repr(value))}; expected true or false, "
            "or one of 1/0, 1/-1, yes/no, up/down, good/bad, desirable/undesirable",
        )
    return _LABELS[key]


def margin(record: Record) -> float | None:
    """How much better the chosen answer is: `margin`, or the difference of two scores; None without either."""
    if _filled(record, "margin"):
        return _number(record, "margin")
    if _filled(record, "score_chosen") and _filled(record, "score_rejected"):
        return _number(record, "score_chosen") - _number(record, "score_rejected")
    return None


def finite(value: object) -> float:
    """A number, also one written as text; NaN for everything that is not a finite number."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _filled(record: Record, column: str) -> bool:
    """As `has`, where a blank cell of a CSV is no number either."""
    value = record.values.get(column)
    return value is not None and not (isinstance(value, str) and not value.strip())


def _number(record: Record, column: str) -> float:
    value = record.values[column]
    number = finite(value)
    if math.isnan(number):
        raise RowError(record.origin, "wrong type", f"'{column}' is {short(repr(value))}; expected a finite number")
    return number


def _as_text(value: object, where: str, origin: Origin) -> str:
    if not isinstance(value, str):
        raise RowError(origin, "wrong type", f"{where} holds {_kind(value)} where text is expected")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {short(repr(value))}"
    names = {"list": "a list", "tuple": "a list", "dict": "an object", "bytes": "bytes", "str": "text"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _blank(name: str, value: str) -> str:
    return f"'{name}' is {'blank' if value else 'empty'}; an answer has to have text"


def short(value: str) -> str:
    """Text of a row cut to what a message has room for."""
    return value if len(value) <= 40 else value[:37] + "..."
