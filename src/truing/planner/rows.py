"""Sizes of a recipe's rows, read and counted without torch: near enough for a plan; training counts exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from truing.data.dataset import read_rows
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Prompt, Words
from truing.data.settings import DataSettings
from truing.planner.methods import Method
from truing.planner.setting import Row

TOKENS_PER_WORD = 1.4
"""Of English prose under today's tokenizers, where a model folder has none to ask."""

TURN = 6
"""Tokens that a chat template puts around a turn, about."""

Count = Callable[[str], int]


def read_sizes(settings: DataSettings, name: str, method: Method, model: Path) -> list[Row]:
    """Read a stage's rows and count their tokens; rows longer than the limit are cut as training cuts them."""
    examples = read_rows(settings, method.examples, needed_by=name).examples
    count = counter(model)
    return [_row(example, count, settings.max_length, method) for example in examples]


def counter(model: Path) -> Count:
    """Return what counts tokens: the model's own tokenizer where its folder has a fast one, else words."""
    file = model / "tokenizer.json"
    if not file.is_file():
        return lambda text: round(TOKENS_PER_WORD * len(text.split()))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _row(example: Example, count: Count, limit: int, method: Method) -> Row:
    sizes = tuple(min(_size(answer, count) + 1, limit - 1) for answer in _answers(example))
    prompt = max(1, min(_size(example.prompt, count), limit - max(sizes, default=0)))
    return Row(prompt, sizes, sum(sizes), sizes[0] if method.mismatched else 0)


def _answers(example: Example) -> Sequence[Words]:
    match example:
        case Comparison():
            return example.chosen, example.rejected
        case Judgement() | Demonstration():
            return (example.completion,)
        case Prompt():
            return ()


def _size(words: Words, count: Count) -> int:
    if isinstance(words, str):
        return count(words)
    return sum(count(message.content) + TURN for message in words)
