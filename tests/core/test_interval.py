from __future__ import annotations

import math

import numpy as np
import pytest

from truing.core.interval import Interval


def test_independent_rows_have_wilsons_interval() -> None:
    found = Interval.of_share(np.arange(100) < 30, np.arange(100))
    z, n, p = 1.959964, 100 * (99 / 100), 0.3  # the sample variance divides by n - 1
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.low == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-3)
    assert found.high == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-3)


def test_rows_that_always_agree_count_as_one() -> None:
    once = Interval.of_share(np.arange(50) % 2 == 0, np.arange(50))
    tenfold = Interval.of_share(np.repeat(np.arange(50) % 2 == 0, 10), np.repeat(np.arange(50), 10))
    assert (tenfold.low, tenfold.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_all_hits_still_leave_doubt_and_it_shrinks_with_clusters() -> None:
    few, many = (Interval.of_share(np.ones(100, bool), np.arange(100) // size) for size in (50, 1))
    assert few.value == many.value == few.high == many.high == 1
    assert few.low < 0.4 < 0.9 < many.low < 1


def test_one_row_says_next_to_nothing() -> None:
    found = Interval.of_share(np.array([True]), np.array([0]))
    assert found.low < 0.25
    assert found.high == 1


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 5)
    held = 0
    for _ in range(1000):
        chances = generator.beta(2, 3, 60)  # clusters differ: mean 0.4
        found = Interval.of_share(generator.random(300) < chances[clusters], clusters)
        held += found.low <= 0.4 <= found.high
    assert 0.93 < held / 1000 < 0.975
