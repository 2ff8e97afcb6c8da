"""The examples as all checks read them: plain texts, their words, and which examples share a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from truing.audit.finding import EXAMPLES, shorten
from truing.audit.words import WordLists
from truing.core.trees import Origin
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Words, prompt_key

PARTS = 3
"""Texts of an example: prompt, first answer (the chosen one of two), second answer; empty where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Examples with their texts taken apart once. Text `PARTS * i + p` is part p of example i."""

    examples: Sequence[Example]
    texts: Sequence[str]
    words: WordLists
    prompts: npt.NDArray[np.int64]  # int64 [E]: number of the example's prompt, from 0

    @classmethod
    def of(cls, examples: Sequence[Example], on_progress: Callable[[int, int], None]) -> Material:
        """Take examples apart."""
        texts = [text for example in examples for text in texts_of(example)]
        numbers: dict[str, int] = {}
        prompts = [numbers.setdefault(prompt_key(example), len(numbers)) for example in examples]
        return cls(examples, texts, WordLists.of(texts, on_progress), np.array(prompts, dtype=np.int64))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Words of each part: int64 [E, PARTS]."""
        return self.words.lengths.reshape(-1, PARTS)

    @property
    def comparisons(self) -> npt.NDArray[np.int64]:
        """Indices of the comparisons."""
        return self._are(Comparison)

    @property
    def judgements(self) -> npt.NDArray[np.int64]:
        """Indices of the judgements."""
        return self._are(Judgement)

    def rows(self, indices: Iterable[int]) -> tuple[Origin, ...]:
        """The rows of some examples, each once."""
        return tuple(dict.fromkeys(self.examples[index].origin for index in indices))

    def share(self, indices: Iterable[int]) -> float:
        """The share of all rows that these examples come from."""
        return len(self.rows(indices)) / len(self.rows(range(len(self.examples))))

    def quotes(self, indices: Iterable[int]) -> tuple[str, ...]:
        """The texts of the first of these rows, shortened."""
        first: dict[Origin, int] = {}
        for index in indices:
            first.setdefault(self.examples[index].origin, index)
            if len(first) == EXAMPLES:
                break
        return tuple(self._quote(index) for index in first.values())

    def _quote(self, index: int) -> str:
        asked, first, second = self.texts[PARTS * index : PARTS * (index + 1)]
        example = self.examples[index]
        if isinstance(example, Comparison):
            return f"{shorten(asked, 60)} | chosen: {shorten(first, 60)} | rejected: {shorten(second, 60)}"
        if isinstance(example, Judgement):
            return f"{shorten(asked, 60)} | {'good' if example.label else 'bad'}: {shorten(first, 100)}"
        return " | ".join(shorten(text, 100) for text in (asked, first) if text)

    def _are(self, kind: type[Example]) -> npt.NDArray[np.int64]:
        return np.array([i for i, example in enumerate(self.examples) if isinstance(example, kind)], dtype=np.int64)


def texts_of(example: Example) -> tuple[str, str, str]:
    """An example's parts as plain text."""
    asked = plain(example.prompt)
    if isinstance(example, Comparison):
        return asked, plain(example.chosen), plain(example.rejected)
    if isinstance(example, (Demonstration, Judgement)):
        return asked, plain(example.completion), ""
    return asked, "", ""


def plain(words: Words) -> str:
    """Raw text as it is, messages as their contents a line each."""
    if isinstance(words, str):
        return words
    return words[0].content if len(words) == 1 else "\n".join(turn.content for turn in words)
