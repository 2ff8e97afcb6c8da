"""All comparisons of one prompt as one tree: its answers once, its pairs together (arXiv:2203.02155, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

from truing.core.trees import Completion, Tree


def by_prompt(trees: Sequence[Tree]) -> tuple[Tree, ...]:
    """Join the trees that have the same prompt, in the order of their first rows; equal answers become one."""
    groups: dict[bytes, list[Tree]] = {}
    for tree in trees:
        groups.setdefault(tree.prompt.tobytes(), []).append(tree)
    return tuple(group[0] if len(group) == 1 else _joined(group) for group in groups.values())


def _joined(trees: Sequence[Tree]) -> Tree:
    completions: dict[bytes, int] = {}
    answers: list[Completion] = []
    pairs: list[tuple[int, int]] = []
    margins: list[float] = []
    for tree in trees:
        places = []
        for completion in tree.completions:
            key = completion.tokens.tobytes() + completion.mask.tobytes()
            if key not in completions:
                completions[key] = len(answers)
                answers.append(completion)
            places.append(completions[key])
        pairs += [(places[chosen], places[rejected]) for chosen, rejected in tree.pairs]
        margins += list(tree.margins) or [0.0] * len(tree.pairs)
    rated = tuple(margins) if any(tree.margins for tree in trees) else ()
    return Tree(trees[0].prompt, tuple(answers), tuple(pairs), rated, trees[0].origin)
