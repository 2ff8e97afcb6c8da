"""Comparisons joined by prompt, and answers given to other prompts."""

from __future__ import annotations

import numpy as np
import pytest

from truing.core.batch import collate
from truing.core.errors import DataError
from truing.core.trees import Completion, Origin, Tree
from truing.data.grouping import by_prompt
from truing.data.mismatch import with_mismatches


def completion(*tokens: int, label: bool | None = None) -> Completion:
    return Completion(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=bool), label)


def pair(row: int, prompt: int, chosen: int, rejected: int, *margin: float) -> Tree:
    asked = np.array([1, prompt], dtype=np.int32)
    return Tree(asked, (completion(chosen), completion(rejected)), ((0, 1),), margin, Origin("f", row))


def test_pairs_of_one_prompt_share_its_answers() -> None:
    joined = by_prompt([pair(1, 5, 10, 11), pair(2, 6, 20, 21), pair(3, 5, 11, 12, 0.5), pair(4, 5, 10, 12)])
    assert [tree.origin.row for tree in joined if tree.origin] == [1, 2]
    first = joined[0]
    assert [c.tokens.tolist() for c in first.completions] == [[10], [11], [12]]
    assert first.pairs == ((0, 1), (1, 2), (0, 2))
    assert first.margins == (0.0, 0.5, 0.0)
    assert joined[1].margins == ()
    batch = collate(joined)
    assert batch.num_pairs == 4
    assert batch.num_completions == 5


def test_every_answer_meets_another_prompt() -> None:
    trees = [
        Tree(np.array([1, n // 2], dtype=np.int32), (completion(30 + n, 40 + n, label=True),), origin=Origin("f", n))
        for n in range(8)
    ]
    paired = with_mismatches(trees, 3)
    for before, after in zip(trees, paired, strict=True):
        own, other = after.completions
        assert own is before.completions[0]
        assert other.label is None
        assert len(other.tokens) == 1, "cut to what max_length leaves beside the prompt"
        giver = next(t for t in trees if t.completions[0].tokens[0] == other.tokens[0])
        assert not np.array_equal(giver.prompt, before.prompt)
    turned = with_mismatches(trees[::-1], 3)[::-1]
    assert [t.digest() for t in turned] == [t.digest() for t in paired], "the order of rows decides nothing"


def test_one_prompt_alone_has_no_other() -> None:
    trees = [Tree(np.array([1], dtype=np.int32), (completion(n, label=True),)) for n in (3, 4)]
    with pytest.raises(DataError, match="all 2 rows have one prompt"):
        with_mismatches(trees, 10)
