"""Texts as lists of word numbers: read once, then counted, compared and classified as arrays."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

CHUNK = 2000
"""Texts whose characters are held as an array at a time: about 10 MB of ordinary answers."""

_SEPARATOR, _LETTER, _ALONE = 0, 1, 2
_UNSPACED = ((0x3040, 0x3100), (0x3400, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
"""Kana and Chinese characters are written without spaces; each counts as a word."""

_MULTIPLIER = 0x9E37_79B9_7F4A_7C15
_PLACES = 4096
"""Places in a word that have a multiplier of their own; a longer word begins anew."""


@dataclass(frozen=True, slots=True, eq=False)
class WordLists:
    """The words of many texts, in lower case and without punctuation, as hashes that are the same in every process."""

    words: npt.NDArray[np.uint32]  # uint32 [N], all texts end to end
    ends: npt.NDArray[np.int64]  # int64 [T + 1], 0 first: text t is words[ends[t]:ends[t + 1]]

    @classmethod
    def of(cls, texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda done, total: None) -> WordLists:
        """Take texts apart; two different words share a number once in four thousand million."""
        words: list[npt.NDArray[np.uint32]] = []
        counts: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(texts), CHUNK):
            found, each = _take_apart(texts[start : start + CHUNK])
            words.append(found)
            counts.append(each)
            on_progress(min(start + CHUNK, len(texts)), len(texts))
        ends = np.concatenate([np.zeros(1, dtype=np.int64), *counts]).cumsum()
        return cls(np.concatenate([np.empty(0, dtype=np.uint32), *words]), ends)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Words of each text: int64 [T]."""
        return np.diff(self.ends)

    def of_text(self, text: int) -> npt.NDArray[np.uint32]:
        """The words of one text."""
        return self.words[self.ends[text] : self.ends[text + 1]]


def _take_apart(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The words of a few texts end to end, and how many each has."""
    lowered = [text.lower() for text in texts]
    sizes = np.fromiter((len(text) + 1 for text in lowered), dtype=np.int64, count=len(lowered))
    codes = np.frombuffer("\n".join([*lowered, ""]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = _kinds()[codes]
    before = np.concatenate([np.zeros(1, dtype=np.uint8), kinds[:-1]])
    begins = (kinds == _ALONE) | ((kinds == _LETTER) & (before != _LETTER))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, dtype=np.uint32), np.zeros(len(texts), dtype=np.int64)
    inside = np.flatnonzero(kinds != _SEPARATOR)
    places = inside - starts[begins.cumsum()[inside] - 1]
    terms = np.zeros(len(codes), dtype=np.uint64)
    terms[inside] = codes[inside] * _multipliers()[places % _PLACES]
    hashes = np.add.reduceat(terms, starts)
    counts = np.bincount(np.searchsorted(sizes.cumsum(), starts, side="right"), minlength=len(texts))
    return ((hashes * np.uint64(_MULTIPLIER)) >> np.uint64(32)).astype(np.uint32), counts.astype(np.int64)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character is: a letter or digit, a word by itself, or a separator."""
    letters = (_is_letter(chr(code)) for code in range(sys.maxunicode + 1))
    kinds = np.fromiter(letters, dtype=np.uint8, count=sys.maxunicode + 1)
    for start, end in _UNSPACED:
        kinds[start:end] *= _ALONE
    return kinds


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"  # vowel signs belong to their letters


@cache
def _multipliers() -> npt.NDArray[np.uint64]:
    return np.cumprod(np.full(_PLACES, _MULTIPLIER, dtype=np.uint64), dtype=np.uint64)
