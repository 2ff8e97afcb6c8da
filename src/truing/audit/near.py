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


def shingles(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """A hash of each run of `SHINGLE` words; a text of fewer words is one shingle."""
    wide = words.astype(np.uint64)
    if len(wide) <= SHINGLE:
        return np.atleast_1d((wide * _MULTIPLIERS[: len(wide)]).sum(dtype=np.uint64))[: len(wide)]
    runs = np.lib.stride_tricks.sliding_window_view(wide, SHINGLE)
    return np.asarray(runs @ _MULTIPLIERS, dtype=np.uint64)


def _similar(lists: WordLists, a: int, b: int) -> bool:
    one, other = np.unique(shingles(lists.of_text(a))), np.unique(shingles(lists.of_text(b)))
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
        hashes = [
            np.concatenate([np.empty(0, np.uint64), *(shingles(lists.of_text(text)) for text in item)])
            for item in items[start : start + CHUNK]
        ]
        ends = np.concatenate([[0], np.cumsum([len(each) for each in hashes])]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(hashes), ends, HASHES, SEED)
        on_progress(min(start + CHUNK, len(items)), len(items))
        parts.append(np.array(matrix.to_rows(), dtype=np.uint32))
    return np.concatenate(parts)


def _candidates(signatures: npt.NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band: each member of a bucket with its first and with the one before it."""
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * ROWS : (band + 1) * ROWS]).view(f"V{4 * ROWS}").ravel()
        _, buckets = np.unique(keys, return_inverse=True)
        order = np.argsort(buckets, kind="stable")
        sorted_buckets = buckets[order]
        begins = np.concatenate([[True], sorted_buckets[1:] != sorted_buckets[:-1]])
        first = order[np.flatnonzero(begins)[begins.cumsum() - 1]]
        for place in np.flatnonzero(~begins).tolist():
            yield int(first[place]), int(order[place])
            if first[place] != order[place - 1]:
                yield int(order[place - 1]), int(order[place])
