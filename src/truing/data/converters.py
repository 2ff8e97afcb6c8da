"""One function a format, named after it: a row → what it says. A row that cannot be read is a RowError."""

from __future__ import annotations

import itertools
import re

from truing.core.trees import Origin
from truing.data import rows
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Message, Messages, Prompt, Words
from truing.data.faults import RowError
from truing.data.records import Record

HH_HUMAN = "\n\nHuman:"
HH_ASSISTANT = "\n\nAssistant:"
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def alpaca(record: Record) -> Example:
    """Stanford's Alpaca: instruction, input, output; with `history`, earlier turns are trained as well."""
    turns = (*alpaca_prompt(record), Message("assistant", rows.answer_text(record, "output")))
    return rows.demonstration(turns, record.origin)


def alpaca_prompt(record: Record) -> Messages:
    """The turns before the answer: system, history, and the instruction with its input on the next line."""
    instruction, extra = rows.text(record, "instruction"), rows.optional_text(record, "input")
    asked = "\n".join(part for part in (instruction, extra) if part.strip())
    turns = (*_system(record), *_history(record), Message("user", asked))
    if not asked:
        raise RowError(record.origin, "no user turn", "'instruction' is empty; there is nothing to answer")
    return turns


def sharegpt(record: Record) -> Example:
    """ShareGPT: conversations of `from` and `value`."""
    return rows.demonstration((*_system(record), *rows.messages(record, "conversations")), record.origin)


def sharegpt_prompt(record: Record) -> Messages:
    """The conversation up to its last user turn."""
    return _up_to_last_user((*_system(record), *rows.messages(record, "conversations")), record.origin)


def messages(record: Record) -> Example:
    """Messages of `role` and `content`."""
    return rows.demonstration(rows.messages(record, "messages"), record.origin)


def messages_prompt(record: Record) -> Messages:
    """The messages up to the last user turn."""
    return _up_to_last_user(rows.messages(record, "messages"), record.origin)


def text(record: Record) -> Example:
    """Plain text, all of it trained."""
    return Demonstration("", rows.answer_text(record, "text"), record.origin)


def prompt(record: Record) -> Example:
    """A prompt alone, text or messages."""
    return Prompt(prompt_words(record), {}, record.origin)


def prompt_words(record: Record) -> Words:
    """The `prompt` column, which has to say something."""
    words = rows.words(record, "prompt")
    if isinstance(words, str):
        return words if words.strip() else ""
    rows.check_prompt(words, record.origin)
    return words


def prompt_completion(record: Record) -> Example:
    """A prompt and the one answer that is trained; text or messages."""
    asked, answer = _pair(rows.words(record, "prompt"), rows.words(record, "completion"))
    if isinstance(answer, str):
        rows.check_one_answer(answer, "completion", record.origin)
        return Demonstration(asked, answer, record.origin)
    assert not isinstance(asked, str)
    rows.check_prompt(asked, record.origin)
    if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
        raise RowError(
            record.origin, "no answer at the end", "'completion' has to begin and end with an assistant message"
        )
    rows.check_answers(answer, record.origin)
    return Demonstration(asked, answer, record.origin)


def judgement(record: Record) -> Example:
    """One answer and whether it is desirable; in a conversation it is the last answer that was judged."""
    desirable = rows.label(record)
    column = next((name for name in ("completion", "response") if rows.has(record, name)), None)
    if column is not None:
        asked, answer = _pair(rows.words(record, "prompt"), rows.words(record, column))
        if not isinstance(asked, str):
            rows.check_prompt(asked, record.origin)
        rows.check_one_answer(answer, column, record.origin)
        return Judgement(asked, answer, desirable, record.origin)
    if rows.has(record, "instruction"):
        whole = (*alpaca_prompt(record), Message("assistant", rows.answer_text(record, "output")))
    else:
        turns = "messages" if rows.has(record, "messages") else "conversations"
        whole = (*_system(record), *rows.messages(record, turns))
    rows.demonstration(whole, record.origin)  # raises where it is not a conversation that ends in an answer
    return Judgement(whole[:-1], whole[-1:], desirable, record.origin)


def comparison(record: Record) -> Example:
    """Chosen and rejected answers: text with a prompt, messages, or whole conversations that begin alike."""
    chosen, rejected = rows.words(record, "chosen"), rows.words(record, "rejected")
    asked = rows.words(record, "prompt") if rows.has(record, "prompt") else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _compare_text(record, asked, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError(
            record.origin,
            "wrong type",
            "one of 'chosen' and 'rejected' is text, the other messages; expected both alike",
        )
    return _compare_messages(record, asked, chosen, rejected)


def hh(record: Record) -> Example:
    """Anthropic's HH transcripts: cut at the last "Assistant:", before which both have to be the same."""
    before, chosen = _cut_transcript(record, "chosen")
    context, rejected = _cut_transcript(record, "rejected")
    if before != context:
        raise RowError(
            record.origin,
            "contexts differ",
            "'chosen' and 'rejected' differ before their last answer; a comparison needs two answers to one prompt",
        )
    return _compared(record, before, (Message("assistant", chosen),), (Message("assistant", rejected),))


def llamafactory_comparison(record: Record) -> Example:
    """LLaMA-Factory's pairs: conversations, and one message each for chosen and rejected."""
    asked = (*_system(record), *rows.messages(record, "conversations"))
    answers = []
    for column in ("chosen", "rejected"):
        if not rows.has(record, column):
            rows.missing(record, column)
        answers.append((rows.message(record.values[column], f"'{column}'", record.origin),))
    return _compared(record, asked, answers[0], answers[1])


def alpaca_comparison(record: Record) -> Example:
    """Alpaca with chosen and rejected in the place of output."""
    chosen, rejected = rows.answer_text(record, "chosen"), rows.answer_text(record, "rejected")
    asked = alpaca_prompt(record)
    return _compared(record, asked, (Message("assistant", chosen),), (Message("assistant", rejected),))


def _compare_text(record: Record, asked: Words | None, chosen: str, rejected: str) -> Example:
    if asked is None:
        # A prompt is never guessed as the common beginning of two texts: that cuts mid-word.
        raise RowError(
            record.origin,
            "no prompt",
            "'chosen' and 'rejected' are text without a 'prompt'; add that column, or write both as transcripts "
            'with "\\n\\nHuman:" and "\\n\\nAssistant:"',
        )
    if isinstance(asked, str):
        return _compared(record, asked if asked.strip() else "", chosen, rejected)
    answers = [rows.as_messages(answer, "assistant") for answer in (chosen, rejected)]
    return _compared(record, asked, answers[0], answers[1])


def _compare_messages(record: Record, asked: Words | None, chosen: Messages, rejected: Messages) -> Example:
    if chosen == rejected:
        _refuse_identical(record.origin)
    if chosen[:1] and chosen[0].role != "assistant":
        # Whole conversations, with or without the prompt in a column of its own.
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
        common = tuple(turn for turn, _ in alike)
        if asked is not None and not isinstance(asked, str) and common[: len(asked)] != asked:
            raise RowError(record.origin, "contexts differ", "'chosen' and 'rejected' do not both begin with 'prompt'")
        return _compared(record, common, chosen[len(common) :], rejected[len(common) :])
    if asked is None:
        raise RowError(
            record.origin,
            "no prompt",
            "the messages hold answers alone; add a 'prompt', or begin both with the user's turn",
        )
    return _compared(record, rows.as_messages(asked, "user"), chosen, rejected)


def _compared(record: Record, asked: Words, chosen: Words, rejected: Words) -> Comparison:
    """Check what every comparison has to hold, whatever its format."""
    if not isinstance(asked, str):
        rows.check_prompt(asked, record.origin)
    rows.check_one_answer(chosen, "chosen", record.origin)
    rows.check_one_answer(rejected, "rejected", record.origin)
    if chosen == rejected:
        _refuse_identical(record.origin)
    return Comparison(asked, chosen, rejected, rows.margin(record), record.origin)


def _refuse_identical(origin: Origin) -> None:
    raise RowError(origin, "identical answers", "'chosen' and 'rejected' are the same; there is nothing to prefer")


def _pair(asked: Words, answer: Words) -> tuple[Words, Words]:
    """Both as text, or both as messages where either is."""
    if isinstance(asked, str) and isinstance(answer, str):
        return (asked if asked.strip() else ""), answer
    return rows.as_messages(asked, "user"), rows.as_messages(answer, "assistant")


def _up_to_last_user(turns: Messages, origin: Origin) -> Messages:
    rows.check_prompt(turns, origin)
    last = max(n for n, turn in enumerate(turns) if turn.role == "user")
    return turns[: last + 1]


def _system(record: Record) -> Messages:
    content = rows.optional_text(record, "system")
    return (Message("system", content),) if content.strip() else ()


def _history(record: Record) -> Messages:
    if not rows.has(record, "history"):
        return ()
    turns: list[Message] = []
    value = record.values["history"]
    for entry in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise RowError(record.origin, "wrong type", "'history' has to be a list of [user text, assistant text]")
        turns += [Message("user", entry[0]), Message("assistant", entry[1])]
    return tuple(turns)


def _cut_transcript(record: Record, column: str) -> tuple[Messages, str]:
    """A transcript as the turns before its last answer, and that answer."""
    whole = rows.answer_text(record, column)
    marks = list(_HH_TURN.finditer(whole))
    if not marks or marks[-1].group(1) != "Assistant" or whole[: marks[0].start()].strip():
        raise RowError(
            record.origin,
            "not a transcript",
            f'\'{column}\' is not a transcript: expected "\\n\\nHuman:" first and "\\n\\nAssistant:" last',
        )
    ends = [mark.start() for mark in marks[1:]] + [len(whole)]
    parts = [whole[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    turns = tuple(
        Message("user" if mark.group(1) == "Human" else "assistant", part)
        for mark, part in zip(marks, parts, strict=True)
    )
    return turns[:-1], parts[-1]
