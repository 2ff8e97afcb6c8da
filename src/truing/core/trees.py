"""A prompt and the completions that continue it: the one shape that all training data takes.

A demonstration is a tree with one completion, a comparison one with two and a pair, a rated answer one with a label,
a group of samples one with many. Trees are NumPy only, so that data can be read and checked without torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

ExampleKind = Literal["demonstration", "comparison", "judgement", "prompt"]
"""What a row of data says about a prompt: how to answer, which answer is better, whether one is good, nothing."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something came from: a row counts from 1 (a line of JSONL or CSV, an element of a JSON list)."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One continuation of a prompt."""

    tokens: IntArray
    """int32 [n], n ≥ 1, the end token included unless the text was cut."""
    mask: BoolArray
    """bool [n]; true where the token is supervised."""
    label: bool | None = None
    """Desirable or not, where a judgement says so."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A prompt with its completions; pairs of them are (chosen, rejected) indices."""

    prompt: IntArray
    """int32 [p], p ≥ 1: something has to predict a completion's first token."""
    completions: tuple[Completion, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    margins: tuple[float, ...] = ()
    """One rating difference a pair, or empty."""
    origin: Origin | None = None

    @property
    def size(self) -> int:
        """Tokens of the tree when its prompt is stored once."""
        return len(self.prompt) + sum(len(c.tokens) for c in self.completions)

    @property
    def unshared_size(self) -> int:
        """Tokens of the tree when every completion carries its own copy of the prompt."""
        return sum(len(self.prompt) + len(c.tokens) for c in self.completions)

    @property
    def supervised(self) -> int:
        """Supervised tokens over all completions."""
        return sum(int(c.mask.sum()) for c in self.completions)

    def digest(self) -> str:
        """A SHA-256 of the tokens and masks: what log-probs of this tree depend on, besides the model."""
        h = hashlib.sha256(np.int64(len(self.prompt)).tobytes())
        h.update(np.ascontiguousarray(self.prompt, dtype=np.int32).tobytes())
        for c in self.completions:
            h.update(np.int64(len(c.tokens)).tobytes())
            h.update(np.ascontiguousarray(c.tokens, dtype=np.int32).tobytes())
            h.update(np.packbits(c.mask).tobytes())
        return h.hexdigest()
