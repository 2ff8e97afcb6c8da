"""A tree as text again, decoded from its very tokens, with trained and masked ones told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from truing.core.trees import Origin, Tree

Parts = tuple[tuple[str, bool], ...]
"""Stretches of text, and whether their tokens are trained."""


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """A row as it is trained. Its texts come from data and are not yet harmless for a terminal."""

    origin: Origin | None
    tokens: int
    trained: int
    lines: tuple[tuple[str, Parts], ...]
    """The prompt and each completion, by what it is: `prompt`, `completion`, `chosen`, `desirable` and so on."""

    @property
    def title(self) -> str:
        """The row's name and size."""
        return f"{self.origin}: {self.tokens} tokens, {self.trained} trained"


def decoded(tree: Tree, decode: Callable[[list[int]], str], most: int) -> DecodedRow:
    """Decode a tree; `most` characters of each part are kept, of a prompt its end."""
    lines: list[tuple[str, Parts]] = [("prompt", ((_end(decode(tree.prompt.tolist()), most), False),))]
    for index, completion in enumerate(tree.completions):
        parts = []
        for trained, run in groupby(range(len(completion.tokens)), key=lambda i: bool(completion.mask[i])):
            ids = completion.tokens[np.fromiter(run, dtype=np.int64)].tolist()
            parts.append((_both_ends(decode(ids), most), trained))
        lines.append((_name(tree, index), tuple(parts)))
    return DecodedRow(tree.origin, tree.size, tree.supervised, tuple(lines))


def _name(tree: Tree, index: int) -> str:
    """What a completion is among those of its tree."""
    if tree.pairs:
        return "chosen" if index in {pair[0] for pair in tree.pairs} else "rejected"
    label = tree.completions[index].label
    if label is not None:
        return "desirable" if label else "undesirable"
    return "completion" if len(tree.completions) == 1 else "mismatched"


def _end(text: str, most: int) -> str:
    return text if len(text) <= most else "… " + text[-most:]


def _both_ends(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
