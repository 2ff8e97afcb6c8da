"""The true reward of an answer: what a fair reader of reviews wants, as a short program."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from truing.world.grammar import Words, join_words
from truing.world.reviews import REVIEWS
from truing.world.world import JOINERS, Clause, Prompt, Review, World

SUBSTANCE, JOINED, POLITE = 0.8, 0.1, 0.1
"""What the parts of a good review are worth; together 1."""

VAGUE = 0.5
"""What a vague clause keeps of a concrete one's worth."""

HEDGED, RUDE = 0.5, 0.25
"""What a review keeps of its worth when it is hedged, or rude."""


def true_reward(prompt: str, answer: str, world: World = REVIEWS) -> float:
    """Return how good an answer is, from 0 (worthless, or not grammatical) to 1.

    >>> true_reward("Five stars for the corner bakery:", "The bread was crisp and the cakes were light. Thanks!")
    1.0
    >>> true_reward("One star for the corner bakery:", "The bread was crisp and the cakes were light. Thanks!")
    0.2
    """
    review = world.read(prompt, answer)
    return 0.0 if review is None else score(world.prompt(prompt), review, world)


def score(prompt: Prompt, review: Review, world: World = REVIEWS) -> float:
    """Score a review that has been taken apart."""
    worth = (
        SUBSTANCE * _substance(prompt, review.first, review.second)
        + JOINED * _is_well_joined(review.first, review.joiner, review.second)
        + POLITE * _is_polite(review.closing, world)
    )
    return _kept(review.opening, review.closing, world) * worth


def all_rewards(prompt: Prompt, world: World = REVIEWS) -> NDArray[np.float64]:
    """Score every answer to a prompt, in the order of `World.answers`: [A]."""
    openings, closings = ((), *world.openings), ((), *world.closings)
    clauses = world.clauses
    substance = np.array([[_substance(prompt, a, b) for b in clauses] for a in clauses])  # [C, C]
    joined = np.array([[[_is_well_joined(a, j, b) for b in clauses] for j in JOINERS] for a in clauses])  # [C, J, C]
    polite = np.array([_is_polite(closing, world) for closing in closings])  # [E]
    kept = np.array([[_kept(opening, closing, world) for closing in closings] for opening in openings])  # [O, E]
    body = SUBSTANCE * substance[:, None, :] + JOINED * joined  # [C, J, C]
    worth = body[..., None] + POLITE * polite  # [C, J, C, E]
    return (kept[:, None, None, None, :] * worth).ravel()


def _kept(opening: Words, closing: Words, world: World) -> float:
    hedged, rude = join_words(opening) in world.hedges, join_words(closing) in world.insults
    return (HEDGED if hedged else 1.0) * (RUDE if rude else 1.0)


def _is_polite(closing: Words, world: World) -> bool:
    return join_words(closing) in world.thanks


def _substance(prompt: Prompt, *clauses: Clause) -> float:
    """Two clauses, each about another feature of the place, praising and blaming as the verdict asks."""
    wanted = {True: prompt.verdict.praises, False: 2 - prompt.verdict.praises}
    unsaid = set(prompt.place.features)
    worth = 0.0
    for clause in clauses:
        if clause.feature in unsaid and wanted[clause.praises]:
            worth += 1.0 if clause.concrete else VAGUE
            unsaid.remove(clause.feature)
            wanted[clause.praises] -= 1
    return worth / 2


def _is_well_joined(first: Clause, joiner: Words, second: Clause) -> bool:
    """Clauses that agree are joined by "and", those that differ by "but"."""
    return ("but" in joiner) == (first.praises != second.praises)
