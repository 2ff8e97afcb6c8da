"""Resampling against what can be derived: normal theory, duplicated rows, identical runs, and a fixed seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from truing.evaluate.intervals import Doubles, Resamples, numbered, sums_by_cluster


def ones(values: Doubles) -> Doubles:
    return np.ones_like(values)


def test_the_interval_of_a_mean_is_that_of_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(1, 400))
    low, high = Resamples.draw(400).ratio(values, ones(values)).interval()
    half = 1.959964 * values.std() / math.sqrt(400)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.06 * half)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    resamples = Resamples.draw(60, count=1000)
    covered = 0
    for _ in range(400):
        values = generator.exponential(1.0, size=(1, 60))
        low, high = resamples.ratio(values, ones(values)).interval()
        covered += low <= 1.0 <= high
    assert 0.89 <= covered / 400 <= 0.98  # nominal 0.95; a percentile interval of a skewed mean falls short a little


def test_copies_of_a_row_in_its_cluster_add_no_certainty_and_counted_apart_they_seem_to() -> None:
    values = np.random.default_rng(2).normal(size=100)
    copied = np.repeat(values, 4)
    clusters = np.repeat(np.arange(100), 4)
    together = sums_by_cluster(copied[None], clusters, 100)
    honest = Resamples.draw(100).ratio(together, np.full_like(together, 4.0))
    alone = Resamples.draw(100).ratio(values[None], ones(values[None]))
    naive = Resamples.draw(400).ratio(copied[None], ones(copied[None]))
    assert honest.interval() == pytest.approx(alone.interval(), rel=1e-12)
    # Four copies make the naive standard error half of the true one.
    assert honest.draws.std() / naive.draws.std() == pytest.approx(2.0, rel=0.1)


def test_the_paired_difference_of_identical_runs_is_exactly_zero() -> None:
    values = np.random.default_rng(3).normal(size=(3, 50))
    resamples = Resamples.draw(50, seeds=3)
    difference = resamples.ratio(values, ones(values)).minus(resamples.ratio(values.copy(), ones(values)))
    assert difference.value == 0.0
    assert not difference.draws.any()
    assert not difference.excludes(0.0)


def test_a_shift_that_every_prompt_shares_is_separated_however_much_prompts_differ() -> None:
    hard = np.random.default_rng(4).normal(0.0, 100.0, size=(1, 50))
    resamples = Resamples.draw(50)
    one, other = (resamples.ratio(values, ones(values)) for values in (hard, hard + 0.01))
    low, high = one.interval()
    assert low < other.value < high, "apart from each other the intervals overlap"
    assert other.minus(one).interval() == pytest.approx((0.01, 0.01), abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_variance_of_the_mean_over_seeds_is_unbiased(seeds: int) -> None:
    figures = np.arange(float(seeds)) ** 2
    values = np.repeat(figures[:, None], 10, axis=1)  # prompts do not differ, so only seeds are left
    found = Resamples.draw(10, seeds=seeds, count=20_000).ratio(values, ones(values))
    assert found.value == pytest.approx(figures.mean())
    assert found.draws.var() == pytest.approx(figures.var(ddof=1) / seeds, rel=0.05)


def test_one_seed_adds_nothing_and_one_row_stands_for_all_seeds() -> None:
    values = np.random.default_rng(5).normal(size=(1, 30))
    one = Resamples.draw(30, seeds=1).ratio(values, ones(values))
    several = Resamples.draw(30, seeds=4).ratio(values, ones(values))
    assert several.value == pytest.approx(one.value)
    assert np.allclose(several.draws, one.draws)


def test_a_ratio_is_that_of_the_sums_not_the_mean_of_ratios() -> None:
    found = Resamples.draw(2, count=8).ratio(np.array([[1.0, 9.0]]), np.array([[1.0, 3.0]]))
    assert found.value == 10 / 4
    assert set(np.round(found.draws, 12)) <= {1.0, 2.5, 3.0}


def test_a_draw_without_anything_to_divide_by_is_no_nan() -> None:
    found = Resamples.draw(3, count=200).ratio(np.array([[2.0, 0.0, 0.0]]), np.array([[4.0, 0.0, 0.0]]))
    assert np.array_equal(found.draws, np.full(200, 0.5))


def test_the_same_seed_gives_the_same_draws() -> None:
    assert np.array_equal(Resamples.draw(9, 2).clusters, Resamples.draw(9, 2).clusters)
    assert not np.array_equal(Resamples.draw(9, 2).clusters, Resamples.draw(9, 2, seed=1).clusters)


def test_a_single_cluster_has_no_width() -> None:
    keys, count = numbered(np.array([5, 5, 5]))
    sums = sums_by_cluster(np.array([[1.0, 2.0, 3.0]]), keys, count)
    assert Resamples.draw(count).ratio(sums, np.array([[3.0]])).interval() == (2.0, 2.0)
