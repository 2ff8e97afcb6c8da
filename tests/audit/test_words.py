from __future__ import annotations

import random
import re
from itertools import pairwise

import numpy as np

from tests.audit.made import text
from truing.audit.near import SIMILAR, near_pairs, shingles
from truing.audit.words import WordLists


def test_words_are_the_same_whatever_their_case_punctuation_and_place() -> None:
    lists = WordLists.of(["The cat, the CAT!", "cat", "", "  the\ncat the—cat  "])
    assert lists.lengths.tolist() == [4, 1, 0, 4]
    the, cat = lists.of_text(0)[:2]
    assert the != cat
    assert lists.of_text(0).tolist() == lists.of_text(3).tolist() == [the, cat, the, cat]
    assert lists.of_text(1).tolist() == [cat]


def test_words_are_counted_as_a_regular_expression_counts_them() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choice("abcXYZ 019.,-éßж\n") for _ in range(rng.randrange(40))) for _ in range(500)]
    expected = [re.findall(r"[^\W_]+", found.lower()) for found in texts]
    lists = WordLists.of(texts)
    assert lists.lengths.tolist() == [len(words) for words in expected]
    numbers = {}
    for place, words in enumerate(expected):
        for word, number in zip(words, lists.of_text(place).tolist(), strict=True):
            assert numbers.setdefault(word, number) == number, "one word, one number"
    assert len(set(numbers.values())) == len(numbers), "different words have different numbers"


def test_a_language_without_spaces_has_a_word_a_character() -> None:
    assert WordLists.of(["你好世界", "hello 世界", "हिन्दी"]).lengths.tolist() == [4, 3, 1]


def test_no_text_has_no_words() -> None:
    assert WordLists.of([]).lengths.tolist() == []
    assert WordLists.of(["", "…"]).lengths.tolist() == [0, 0]


def test_a_word_longer_than_the_table_of_places_is_still_one_word() -> None:
    lists = WordLists.of(["x" * 10_000 + " y", "x" * 9_999])
    assert lists.lengths.tolist() == [2, 1]
    assert lists.of_text(0)[0] != lists.of_text(1)[0]


def test_shingles_are_the_runs_of_three_words() -> None:
    lists = WordLists.of(["a b c d e", "b c d", "", "a", "a b", "c a b c"])
    hashes, ends = shingles(lists, np.arange(6))
    assert np.diff(ends).tolist() == [3, 1, 0, 1, 1, 2]
    of = [hashes[start:end].tolist() for start, end in pairwise(ends.tolist())]
    assert of[0][1] == of[1][0], "b c d"
    assert of[5][1] == of[0][0], "a b c"
    assert len({*of[0], *of[3], *of[4], *of[5]}) == 6


def _jaccard(one: str, other: str) -> float:
    runs = [{tuple(words[n : n + 3]) for n in range(len(words) - 2)} for words in (one.split(), other.split())]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_near_pairs_are_those_above_the_threshold_and_no_others() -> None:
    rng = random.Random(1)
    texts = []
    for changes in [0, 1, 2, 3, 4, 5, 6, 8, 12, 20] * 12:
        words = text(rng, 60).split()
        texts.append(" ".join(words))
        for _ in range(changes):
            words[rng.randrange(len(words))] = text(rng, 1)
        texts.append(" ".join(words))
    expected = {(n, n + 1) for n in range(0, len(texts), 2) if _jaccard(texts[n], texts[n + 1]) >= SIMILAR}
    assert 20 < len(expected) < 100, "the texts are on both sides"
    found = set(near_pairs(WordLists.of(texts), [(n,) for n in range(len(texts))]))
    assert found <= expected
    assert len(expected - found) <= 1, "two in a thousand at the threshold may be missed"


def test_items_are_near_only_where_all_their_parts_are() -> None:
    rng = random.Random(2)
    same, other = text(rng, 100), text(rng, 10)
    lists = WordLists.of([same, "yes of course", same, "yes of course", same, other, same, ""])
    assert set(near_pairs(lists, [(0, 1), (2, 3), (4, 5), (6, 7)])) == {(0, 1)}


def test_every_member_of_a_large_family_is_found() -> None:
    rng = random.Random(3)
    whole = text(rng, 80)
    lists = WordLists.of([f"{whole} {text(rng, 1)}" for _ in range(200)])
    found = set(near_pairs(lists, [(n,) for n in range(200)]))
    assert {later for _, later in found} == set(range(1, 200))


def test_one_text_or_none_is_near_nothing() -> None:
    assert list(near_pairs(WordLists.of(["a b c"]), [(0,)])) == []
    assert list(near_pairs(WordLists.of([]), [])) == []
    assert set(near_pairs(WordLists.of(["", ""]), [(0,), (1,)])) == {(0, 1)}
