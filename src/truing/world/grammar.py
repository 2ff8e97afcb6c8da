"""The tree of all answers of a finite grammar, stored as a graph: a million answers in a few hundred nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from truing.core.errors import InputError

Words = tuple[str, ...]

WORD = r"\w+!?|[^\w\s]"
"""A word, with its exclamation mark where it has one, or a mark."""

_WORD = re.compile(WORD)
_SPACE_BEFORE_MARK = re.compile(r" (?=[.,:])")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A place in the tree of answers: which words may come next, and whether the answer may end here.

    Prefixes with the same continuations share one node, so a sum over all answers is a sum over few nodes.
    """

    branches: Mapping[str, Node]
    ends: bool
    count: int
    """How many answers continue from here, the one that ends here included."""

    def after(self, words: Iterable[str]) -> Node | None:
        """Return the node that `words` lead to, or None where the grammar does not allow them."""
        node = self
        for word in words:
            if word not in node.branches:
                return None
            node = node.branches[word]
        return node

    def answers(self) -> Iterator[Words]:
        """Walk all answers from here, each prefix once, in the order of the grammar."""
        if self.ends:
            yield ()
        for word, node in self.branches.items():
            for rest in node.answers():
                yield (word, *rest)


def grow(phrases: Iterable[tuple[Words, Node]], *, ends: bool = False) -> Node:
    """Return the node from which each phrase leads to its own next node; phrases with a common beginning share it.

    No phrase may be the beginning of another, so that every answer has exactly one path.
    """
    by_first: dict[str, list[tuple[Words, Node]]] = {}
    for words, then in phrases:
        by_first.setdefault(words[0], []).append((words[1:], then))
    branches = {word: _join(word, rest) for word, rest in by_first.items()}
    return Node(branches, ends, int(ends) + sum(node.count for node in branches.values()))


def _join(word: str, rest: list[tuple[Words, Node]]) -> Node:
    finished = [then for words, then in rest if not words]
    if not finished:
        return grow(rest)
    if len(rest) > 1:
        raise InputError(f"grammar: a phrase that ends in '{word}' is repeated, or begins another; make them distinct")
    return finished[0]


END = grow([], ends=True)
"""Where nothing but the end token follows."""


def split_words(text: str) -> Words:
    """Cut text into words and marks, as the world's tokenizer does.

    >>> split_words("The room was damp. Thanks!")
    ('The', 'room', 'was', 'damp', '.', 'Thanks!')
    """
    return tuple(_WORD.findall(text))


def join_words(words: Iterable[str]) -> str:
    """Write words as text, marks close to the word before them: the inverse of `split_words`.

    >>> join_words(("The", "room", "was", "damp", "."))
    'The room was damp.'
    """
    return _SPACE_BEFORE_MARK.sub("", " ".join(words))
