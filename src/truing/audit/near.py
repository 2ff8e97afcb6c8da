"""Texts that are nearly the same: candidates by MinHash, each confirmed by the words themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from truing.audit.words import WordLists

SHINGLE = 3
"""Words of a shingle; Broder (1997) compares documents by such runs, whose order of words counts."""

SIMILAR = 0.8
"""The share of their shingles that near-duplicates have in common (Jaccard), as in Lee et al. (arXiv:2107.06499)."""

HASHES, BANDS, ROWS = 128, 21, 6
"""Texts are compared where all `ROWS` hashes of any band agree: 99.8 % of those at 0.8, 28 % at 0.5, 2 % at 0.3."""

SEED = 42
CHUNK = 2000
"""Items whose shingles are held at a time."""

_MULTIPLIERS = np.array([0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB, 0xD6E8_FEB8_6659_FD93], dtype=np.uint64)


def near_pairs(
    lists: WordLists,
    items: Sequence[Sequence[int]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, int]]:
    """Give pairs (earlier, later) of items that are nearly the same; an item is a list of texts, such as its parts.

    Items are the same where each text is nearly the other's at the same place. Not every pair of a large family is
    given, but every member of it is in one: members are compared with the first and with the one before.
    """
    if len(items) < 2:
        return
    signatures = _signatures(lists, items, on_progress)
    seen: set[tuple[int, int]] = set()
    for pair in _candidates(signatures):
        if pair not in seen:
            seen.add(pair)
            if all(_similar(lists, a, b) for a, b in zip(items[pair[0]], items[pair[1]], strict=True)):
                yield pair


def shingles(lists: WordLists, texts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """A hash of each run of `SHINGLE` words of some texts end to end, and where each text's begin and end.

    A text of fewer words is one run, an empty one none.
    """
    lengths = lists.lengths[texts]
    counts = np.where(lengths > 0, np.maximum(lengths - SHINGLE + 1, 1), 0)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), counts.cumsum()])
    inside = np.arange(ends[-1]) - np.repeat(ends[:-1], counts)
    left = np.repeat(lengths, counts) - inside
    places = np.repeat(lists.ends[texts], counts) + inside
    last = len(lists.words) - 1
    hashes = np.zeros(len(places), dtype=np.uint64)
    for step, multiplier in enumerate(_MULTIPLIERS):
        words = lists.words[np.minimum(places + step, last)].astype(np.uint64)
        hashes += np.where(step < left, words, np.uint64(0)) * multiplier
    return hashes, ends


def _similar(lists: WordLists, a: int, b: int) -> bool:
    one, other = (np.unique(shingles(lists, np.array([text]))[0]) for text in (a, b))
    if min(len(one), len(other)) < SIMILAR * max(len(one), len(other)):
        return False
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= SIMILAR * (len(one) + len(other) - common)


def _signatures(
    lists: WordLists, items: Sequence[Sequence[int]], on_progress: Callable[[int, int], None]
) -> npt.NDArray[np.uint32]:
    """MinHash signatures of all shingles of an item: uint32 [I, HASHES]."""
    from rensa import RMinHash

    parts = []
    for start in range(0, len(items), CHUNK):
        texts = np.array(items[start : start + CHUNK], dtype=np.int64)  # [I, texts of an item]
        hashes, ends = shingles(lists, texts.ravel())
        of_items = ends[:: texts.shape[1]].astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, of_items, HASHES, SEED)
        parts.append(np.array(matrix.to_rows(), dtype=np.uint32))
        on_progress(min(start + CHUNK, len(items)), len(items))
    return np.concatenate(parts)


def _candidates(signatures: npt.NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band: each member of a bucket with its first and with the one before it."""
    mixers = np.random.default_rng(SEED).integers(2**64, size=ROWS, dtype=np.uint64)
    for band in range(BANDS):
        keys = signatures[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64) @ mixers
        order = np.argsort(keys, kind="stable")
        begins = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
        first = order[np.flatnonzero(begins)[begins.cumsum() - 1]]
        for place in np.flatnonzero(~begins).tolist():
            yield int(first[place]), int(order[place])
            if first[place] != order[place - 1]:
                yield int(order[place - 1]), int(order[place])
