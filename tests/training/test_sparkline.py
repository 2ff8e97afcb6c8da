"""The laws of the small curves: as wide as asked, extremes seen, gaps left open."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.training.sparkline import ASCII, BLOCKS, sparkline

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SERIES = st.lists(st.one_of(st.none(), st.floats()), max_size=200)


@given(SERIES, st.integers(1, 60))
def test_a_curve_is_as_wide_as_asked(values: list[float | None], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) == width
    assert set(drawn) <= set(BLOCKS + " ")


@given(st.lists(st.one_of(st.none(), FINITE), min_size=2, max_size=300), st.integers(2, 60))
def test_the_extremes_of_a_series_are_seen_however_it_is_thinned(values: list[float | None], width: int) -> None:
    known = [value for value in values if value is not None]
    drawn = sparkline(values, width)
    if known and min(known) / 2 < max(known) / 2:
        assert BLOCKS[0] in drawn
        assert BLOCKS[-1] in drawn


@given(FINITE, st.integers(1, 100), st.integers(1, 60))
def test_a_constant_series_is_level_at_mid_height(value: float, count: int, width: int) -> None:
    assert sparkline([value] * count, width) == ("▄" * min(count, width)).ljust(width)


def test_a_series_that_fits_is_drawn_value_by_value() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS
    assert sparkline([7, 0], 4) == "█▁  "


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_gap_and_has_no_say_in_the_scale(gap: float | None) -> None:
    assert sparkline([0, gap, 7], 3) == "▁ █"
    assert sparkline([gap] * 5, 3) == "   "
    assert sparkline([], 3) == "   "


def test_a_gap_within_a_share_does_not_lower_its_mean() -> None:
    values = [0.0, None, 7.0, 7.0, None, 7.0, 7.0, 7.0]
    assert sparkline(values, 4) == "▁███"


def test_means_hide_noise_but_not_a_spike() -> None:
    values = [1.0, 3.0] * 200
    values[250] = 9.0
    drawn = sparkline(values, 20)
    assert drawn.count("█") == 1
    assert drawn.count("▁") == 1
    assert set(drawn) - {"█", "▁"} == {"▂"}


def test_other_marks_may_be_given() -> None:
    assert sparkline([0, 7], 2, ASCII) == "_#"
