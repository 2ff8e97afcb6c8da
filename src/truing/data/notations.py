"""One function a format, named after it: an example → a row that says it, or as much of it as the format can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from truing.data.conversion import row_of
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Message, Messages, Words
from truing.data.faults import RowError
from truing.data.rows import as_messages

Row = dict[str, object]


def messages(example: Demonstration) -> Row:
    """Role and content."""
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in _turns(example)]}


def sharegpt(example: Demonstration) -> Row:
    """From and value; a system message is a turn among the others."""
    return {"conversations": _conversation(_turns(example))}


def text(example: Demonstration) -> Row:
    """Prompt and completion as one text."""
    if not isinstance(example.prompt, str) or not isinstance(example.completion, str):
        raise RowError(
            example.origin, "not text", "a conversation becomes text only by a chat template; write messages"
        )
    return {"text": example.prompt + example.completion}


def alpaca(example: Demonstration) -> Row:
    """The last question and answer, with system and history where there are any."""
    *asked, answer = _turns(example)
    return {**_alpaca_prompt(asked, example), "output": answer.content}


def alpaca_comparison(example: Comparison) -> Row:
    """As alpaca, with two answers."""
    asked = as_messages(example.prompt, "user")
    return {
        **_alpaca_prompt(asked, example),
        "chosen": _single(example.chosen, example).content,
        "rejected": _single(example.rejected, example).content,
        **_margin(example),
    }


def hh(example: Comparison) -> Row:
    """Two transcripts, which have no place for a system message."""
    asked = "".join(_spoken(turn) for turn in as_messages(example.prompt, "user") if turn.role != "system")
    answers = {
        name: asked + "".join(_spoken(turn) for turn in as_messages(words, "assistant"))
        for name, words in (("chosen", example.chosen), ("rejected", example.rejected))
    }
    return {**answers, **_margin(example)}


def llamafactory_comparison(example: Comparison) -> Row:
    """A conversation, and one message each for the two answers."""
    chosen, rejected = _single(example.chosen, example), _single(example.rejected, example)
    return {
        "conversations": _conversation(as_messages(example.prompt, "user")),
        "chosen": _conversation((chosen,))[0],
        "rejected": _conversation((rejected,))[0],
        **_margin(example),
    }


WRITTEN: Mapping[str, Callable[..., Row]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "messages": messages,
    "text": text,
    "prompt_completion": row_of,
    "comparison": row_of,
    "alpaca_comparison": alpaca_comparison,
    "hh": hh,
    "llamafactory_comparison": llamafactory_comparison,
    "judgement": row_of,
    "prompt": row_of,
}
"""The formats that can be written. Each function takes examples of the format's own kind."""


def losses(example: Example, read: Example) -> tuple[str, ...]:
    """Name what `read`, an example written and read back, no longer says."""
    lost = []
    if isinstance(example, Comparison) and isinstance(read, Comparison) and example.margin != read.margin:
        lost.append("the margin")
    before, after = _all_words(example), _all_words(read)
    if any(isinstance(a, str) != isinstance(b, str) for a, b in zip(before, after, strict=True)):
        lost.append("that it is raw text (it becomes turns, which a chat template is put around)")
        before = tuple(as_messages(words, ("user", "assistant")[n > 0]) for n, words in enumerate(before))
    if before != after:
        lost.append(_lost_words(before, after))
    if not isinstance(example, (Comparison, Demonstration, Judgement)) and example != read:
        lost.append("the types of the columns for rewards")
    return tuple(lost)


def _lost_words(before: tuple[Words, ...], after: tuple[Words, ...]) -> str:
    """Name the difference between the prompt and answers of two examples."""
    if _joined(before) == _joined(after):
        return "where the prompt ends and what is trained begins"
    if _joined(_without_system(before)) == _joined(_without_system(after)):
        return "the system message"
    if _stripped(before) == _stripped(after):
        return "white space around a turn"
    return "turns that this format reads in another way"


def _joined(words: Sequence[Words]) -> list[str]:
    return [turn if isinstance(turn, str) else f"{turn.role}: {turn.content}" for part in words for turn in part]


def _without_system(words: tuple[Words, ...]) -> tuple[Words, ...]:
    return tuple(w if isinstance(w, str) else tuple(turn for turn in w if turn.role != "system") for w in words)


def _stripped(words: tuple[Words, ...]) -> list[Words]:
    return [w.strip() if isinstance(w, str) else tuple(Message(t.role, t.content.strip()) for t in w) for w in words]


def _all_words(example: Example) -> tuple[Words, ...]:
    if isinstance(example, Comparison):
        return example.prompt, example.chosen, example.rejected
    if isinstance(example, (Demonstration, Judgement)):
        return example.prompt, example.completion
    return (example.prompt,)


def _turns(example: Demonstration) -> Messages:
    if not example.prompt:
        raise RowError(example.origin, "no prompt", "plain text has no turns; write text or prompt_completion")
    return (*as_messages(example.prompt, "user"), *as_messages(example.completion, "assistant"))


def _alpaca_prompt(asked: Sequence[Message], example: Example) -> Row:
    """Instruction, with system and history before it. Raises RowError unless user and assistant take turns."""
    system = asked[0].content if asked and asked[0].role == "system" else None
    turns = asked[1:] if system is not None else asked
    expected = [("user", "assistant")[n % 2] for n in range(len(turns))]
    if len(turns) % 2 == 0 or [turn.role for turn in turns] != expected:
        raise RowError(
            example.origin, "turns", "user and assistant do not take turns up to the last question, as alpaca needs"
        )
    history = [[turns[n].content, turns[n + 1].content] for n in range(0, len(turns) - 1, 2)]
    return {
        **({} if system is None else {"system": system}),
        **({"history": history} if history else {}),
        "instruction": turns[-1].content,
        "input": "",
    }


def _single(answer: Words, example: Example) -> Message:
    turns = as_messages(answer, "assistant")
    if len(turns) != 1:
        raise RowError(example.origin, "several turns", "an answer has several turns where the format has room for one")
    return turns[0]


def _conversation(turns: Sequence[Message]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn.role], "value": turn.content} for turn in turns]


def _spoken(turn: Message) -> str:
    return f"\n\n{'Human' if turn.role == 'user' else 'Assistant'}: {turn.content}"


def _margin(example: Comparison) -> Row:
    return {} if example.margin is None else {"margin": example.margin}
