"""The figures of best-of-n sampling, against brute force and against what they have to be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from truing.core.best_of import clustered_error, expected_best, kl_bound
from truing.core.errors import InputError

SCORES = np.array([[0.3, -1.0, 2.5, 0.3, 7.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [-3.0, 0.0, 5.0, 4.0, 2.0, 1.0]])


@pytest.mark.parametrize("k", range(1, 7))
def test_the_expected_best_is_the_mean_over_all_subsets(k: int) -> None:
    brute = [np.mean([max(subset) for subset in itertools.combinations(row, k)]) for row in SCORES]
    assert expected_best(SCORES, k) == pytest.approx(brute, rel=1e-12)


def test_the_best_of_one_is_the_mean_and_of_all_the_largest() -> None:
    assert expected_best(SCORES, 1) == pytest.approx(SCORES.mean(axis=1))
    assert expected_best(SCORES, 6) == pytest.approx(SCORES.max(axis=1))
    many = np.random.default_rng(0).standard_normal((1, 3000))  # binomials far beyond a float
    assert np.isfinite(expected_best(many, 1500)).all()


@pytest.mark.parametrize("k", [0, 7])
def test_more_than_was_sampled_cannot_be_estimated(k: int) -> None:
    with pytest.raises(InputError, match="expected 1 to 6"):
        expected_best(SCORES, k)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_bound_holds_and_is_reached_where_scores_do_not_tie(n: int) -> None:
    """Of m outcomes of equal chance, the best of n is the i-th with chance (i/m)ⁿ − ((i − 1)/m)ⁿ."""

    def kl(outcomes: int) -> float:
        best = np.diff((np.arange(outcomes + 1) / outcomes) ** n)
        return float(np.sum(best * np.log(np.maximum(best, 1e-300) * outcomes)))

    assert kl(3) < kl(30) < kl_bound(n)
    assert kl(30_000) == pytest.approx(kl_bound(n), abs=2e-3)
    assert kl_bound(1) == 0.0


def test_values_of_one_cluster_count_as_one() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    alone = clustered_error(values, np.arange(4))
    assert alone == pytest.approx(values.std(ddof=1) / math.sqrt(4))
    assert clustered_error(values.repeat(5), np.arange(4).repeat(5)) == pytest.approx(alone)
    # By hand: mean 3.5, residuals of the clusters −4 and 4, √(2 · 32) / 4.
    assert clustered_error(values, np.array([8, 8, 3, 3])) == pytest.approx(2.0)
    assert clustered_error(values, np.zeros(4, dtype=np.int64)) is None
