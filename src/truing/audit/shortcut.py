"""Whether single words give the preferred answer away: a bag of words, tested on prompts that it was not fitted to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from truing.audit.finding import Finding, percent
from truing.audit.material import PARTS, Material
from truing.audit.words import WordLists
from truing.core.interval import Interval

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

MOST = 20_000
"""Pairs that are fitted, drawn at random where there are more: they give the share to within 0.7 points."""

LEAST = 100
"""Pairs, and a tenth as many prompts, below which no share is told: its interval would be 20 points wide."""

FOLDS = 5
SEED = 0
STRENGTH = 1.0
"""Of the L2 penalty's inverse, for differences of unit length."""

RARE = 2
"""Answers that a word has to be in."""

SHORTCUT = 0.95
"""A share that no preference of people reaches by words alone: something else than quality tells the answers apart."""

CHANCE = 0.55
"""Where even the upper end is below, words say next to nothing about which answer is better."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the bag of words says of comparisons whose prompt it was not fitted to."""

    pairs: npt.NDArray[np.int64]  # int64 [P]: indices of the comparisons
    margins: npt.NDArray[np.float64]  # float64 [P]: above 0 where it prefers the chosen answer
    prompts: npt.NDArray[np.int64]  # int64 [P]

    @property
    def right(self) -> Interval:
        """The share of comparisons that it decides as the label does; undecided ones count as wrong."""
        return Interval.of_share(self.margins > 0, self.prompts)


def score_pairs(material: Material, on_progress: Callable[[int, int], None]) -> Scores | None:
    """Score comparisons by cross-validation over prompts; None where there are too few.

    A logistic regression on which words are in one answer and not in the other (Bradley and Terry 1952), no prompt on
    both sides of a fold.
    """
    generator = np.random.default_rng(SEED)
    pairs = material.comparisons
    if len(pairs) > MOST:
        pairs = np.sort(generator.choice(pairs, MOST, replace=False))
    _, prompts = np.unique(material.prompts[pairs], return_inverse=True)
    if len(pairs) < LEAST or prompts.max() + 1 < LEAST // 10:
        return None
    differences = _differences(material, pairs)
    sides = np.where(generator.random(len(pairs)) < 0.5, -1, 1)  # a classifier needs two classes
    shown = _weighted(differences, sides)
    folds = generator.permutation(int(prompts.max()) + 1)[prompts] % FOLDS
    margins = np.zeros(len(pairs))
    for fold in range(FOLDS):
        inside = folds == fold
        margins[inside] = _fit(shown[~inside], sides[~inside]).decision_function(shown[inside]) * sides[inside]
        on_progress(fold + 1, FOLDS)
    return Scores(pairs, margins, prompts.astype(np.int64))


def shortcut_finding(material: Material, scores: Scores | None) -> Finding | None:
    """The check `shortcut`."""
    if scores is None:
        return None
    right = scores.right
    figures = {"share": right.value, "low": right.low, "high": right.high, "pairs": float(len(scores.pairs))}
    told = (
        f"a bag of words decides {percent(right.value)} of the held-out pairs as the labels do "
        f"({percent(right.low)} to {percent(right.high)})"
    )
    if right.value > SHORTCUT:
        words = ", ".join(f"'{word}'" for word in _telling(material, scores.pairs))
        found = scores.pairs[scores.margins > 0].tolist()
        return Finding(
            "shortcut",
            "strong",
            f"{told}: something else than quality tells them apart; the words that speak loudest are {words}",
            "look for what one source of answers always writes, such as a phrase or a mark, and take it out of both",
            material.rows(found),
            material.quotes(found),
            figures,
        )
    if right.high < CHANCE:
        return Finding(
            "shortcut",
            "warn",
            f"{told}, as a coin would: the labels may be noise, or the difference does not lie in single words",
            "read some pairs and judge them yourself before training on them",
            figures=figures,
        )
    return Finding("shortcut", "ok", told, figures=figures)


def _differences(material: Material, pairs: npt.NDArray[np.int64]) -> csr_array:
    """Which words are in the chosen answer (1) and which in the rejected one (−1), each row of unit length."""
    chosen, rejected, _ = _presence(material, pairs)
    differences = (chosen - rejected).tocsr()
    norms = np.sqrt(differences.multiply(differences).sum(axis=1))
    return _weighted(differences, 1 / np.maximum(norms, 1e-6))


def _presence(material: Material, pairs: npt.NDArray[np.int64]) -> tuple[csr_array, csr_array, npt.NDArray[np.uint32]]:
    """Which words each answer has, as float32 [P, V] for chosen and for rejected answers, and the words' hashes."""
    from scipy.sparse import csr_array

    texts = np.concatenate([PARTS * pairs + 1, PARTS * pairs + 2])
    lists = [material.words.of_text(text) for text in texts.tolist()]
    rows = np.repeat(np.arange(len(texts)), [len(words) for words in lists])
    vocabulary, columns = np.unique(np.concatenate(lists), return_inverse=True)
    shape = (len(texts), len(vocabulary))
    present = csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    present.sum_duplicates()
    present.data[:] = 1
    common = np.flatnonzero(np.bincount(present.indices, minlength=len(vocabulary)) >= RARE)
    present = present[:, common]
    return present[: len(pairs)], present[len(pairs) :], vocabulary[common]


def _weighted(rows: csr_array, weights: npt.NDArray[np.float64]) -> csr_array:
    from scipy.sparse import diags_array

    return (diags_array(weights.astype(np.float32)) @ rows).tocsr()


def _fit(rows: csr_array, sides: npt.NDArray[np.int64]) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=200).fit(rows, sides)


def _telling(material: Material, pairs: npt.NDArray[np.int64]) -> list[str]:
    """The three words whose presence differs most between chosen and rejected answers."""
    chosen, rejected, hashes = _presence(material, pairs)
    gaps = abs(chosen.sum(axis=0) - rejected.sum(axis=0))
    return [_spelled(material, int(hashes[column])) for column in np.argsort(-gaps)[:3]]


def _spelled(material: Material, number: int) -> str:
    """A word by its hash, as it stands in the first text that has it."""
    text = (
        int(np.searchsorted(material.words.ends, np.flatnonzero(material.words.words == number)[0], side="right")) - 1
    )
    words = re.findall(r"\w+", material.texts[text].lower()) or [""]
    found = WordLists.of(words)
    places = np.flatnonzero(found.words == number)
    return words[int(np.searchsorted(found.ends, places[0], side="right")) - 1] if len(places) else "(not a plain word)"
