"""The true reward of an answer: what a fair reader of reviews wants, as a short program."""

from __future__ import annotations

from truing.world.grammar import join_words
from truing.world.reviews import REVIEWS
from truing.world.world import Prompt, Review, World

SUBSTANCE, JOINED, POLITE = 0.8, 0.1, 0.1
"""What the parts of a good review are worth; together 1."""

VAGUE = 0.5
"""What a vague clause keeps of a concrete one's worth."""

HEDGED, RUDE = 0.5, 0.25
"""What a review keeps of its worth when it is hedged, or rude."""


def true_reward(prompt: str, answer: str, world: World = REVIEWS) -> float:
    """Return how good an answer is, from 0 (worthless, or not grammatical) to 1.

    >>> true_reward("Five stars for the corner bakery:", "The bread was crisp and the cakes were light. Thank you!")
    1.0
    >>> true_reward("One star for the corner bakery:", "The bread was crisp and the cakes were light. Thank you!")
    0.2
    """
    review = world.read(prompt, answer)
    return 0.0 if review is None else score(world.prompt(prompt), review, world)


def score(prompt: Prompt, review: Review, world: World = REVIEWS) -> float:
    """Score a review that has been taken apart."""
    kept = 1.0
    if join_words(review.opening) in world.hedges:
        kept *= HEDGED
    if join_words(review.closing) in world.insults:
        kept *= RUDE
    polite = join_words(review.closing) in world.thanks
    return kept * (SUBSTANCE * _substance(prompt, review) + JOINED * _is_well_joined(review) + POLITE * polite)


def _substance(prompt: Prompt, review: Review) -> float:
    """Two clauses, each about another feature of the place, praising and blaming as the verdict asks."""
    wanted = {True: prompt.verdict.praises, False: 2 - prompt.verdict.praises}
    unsaid = set(prompt.place.features)
    worth = 0.0
    for clause in (review.first, review.second):
        if clause.feature in unsaid and wanted[clause.praises]:
            worth += 1.0 if clause.concrete else VAGUE
            unsaid.remove(clause.feature)
            wanted[clause.praises] -= 1
    return worth / 2


def _is_well_joined(review: Review) -> bool:
    """Clauses that agree are joined by "and", those that differ by "but"."""
    differ = review.first.praises != review.second.praises
    return ("but" in review.joiner) == differ
