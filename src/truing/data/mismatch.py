"""Another prompt's answer as a second branch: what KTO takes its reference point from (arXiv:2402.01306, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from truing.core.errors import DataError
from truing.core.trees import Completion, Tree


def with_mismatches(trees: Sequence[Tree], max_length: int) -> tuple[Tree, ...]:
    """Give each tree, beside its own answer, that of a tree with another prompt; unlabelled, cut to `max_length`.

    Who gets whose is decided by the trees' digests, so that it is the same in any order and in every epoch, and
    reference log-probs can be kept. Raises DataError where all prompts are one.
    """
    order = sorted(range(len(trees)), key=lambda index: trees[index].digest())
    paired: list[Tree] = list(trees)
    for place, index in enumerate(order):
        other = _next_other(trees, order, place)
        room = max(1, max_length - len(trees[index].prompt))
        answer = trees[other].completions[0]
        branch = Completion(answer.tokens[:room], _not_empty(answer.mask[:room]))
        paired[index] = replace(trees[index], completions=(*trees[index].completions, branch))
    return tuple(paired)


def _next_other(trees: Sequence[Tree], order: Sequence[int], place: int) -> int:
    """The next tree in a circle whose prompt is another."""
    own = trees[order[place]].prompt
    for step in range(1, len(order)):
        candidate = order[(place + step) % len(order)]
        if not np.array_equal(trees[candidate].prompt, own):
            return candidate
    raise DataError(
        f"all {len(order):,} rows have one prompt; each answer is compared with another prompt's, so two are needed"
    )


def _not_empty(mask: np.ndarray) -> np.ndarray:
    """The mask, or everything where the cut left no trained token."""
    return mask if mask.any() else np.ones_like(mask)
