from __future__ import annotations

import math

import pytest

from tests.lab import made
from truing.lab.laws import curves, fit, fits


@pytest.mark.parametrize("law", ["best of n", "RL"])
def test_a_law_is_found_again_in_points_that_follow_it(law: str) -> None:
    along = [0.2, 0.5, 0.9, 1.4, 2.0]
    curve = [(d, d * (0.5 - 0.2 * (d if law == "best of n" else math.log(d)))) for d in along]
    found = fit(law, curve)  # type: ignore[arg-type]
    assert found is not None
    assert (found.alpha, found.beta, found.r_squared) == pytest.approx((0.5, 0.2, 1.0))
    for d, gain in curve:
        assert found.gain(d) == pytest.approx(gain)


@pytest.mark.parametrize("law", ["best of n", "RL"])
def test_the_peak_is_where_the_gain_is_greatest(law: str) -> None:
    found = fit(law, [(d, d * (0.4 - 0.3 * (d if law == "best of n" else math.log(d)))) for d in (0.3, 0.8, 1.5)])  # type: ignore[arg-type]
    assert found is not None
    assert found.peak is not None
    assert found.gain(found.peak) > max(found.gain(found.peak * 0.95), found.gain(found.peak * 1.05))


def test_a_gain_that_only_grows_has_no_peak_and_few_points_have_no_law() -> None:
    growing = fit("best of n", [(d, d * (0.4 + 0.1 * d)) for d in (0.3, 0.8, 1.5)])
    assert growing is not None
    assert growing.peak is None
    assert fit("RL", [(0.0, 0.0), (0.5, 0.1), (1.0, 0.2)]) is None


def test_curves_are_gains_over_the_reference() -> None:
    arms = made.experiment(made.arm("reward", stage={"objective": {"use": "reward"}}), made.arm("ppo", reward="reward"))
    looks = tuple(made.look(step, 0.4 + step / 10, step / 4, float(step)) for step in (1, 2, 3))
    ran = made.outcome("ppo", (0.75,) * 3, kl=1.0, looks=looks, figures={"proxy/proxy": 4.0})
    outcomes = [made.base(), made.reference(), made.scorer(), ran]
    (_, law, best, _), (name, other, truth, proxy) = curves(arms, outcomes)
    assert (law, name, other) == ("best of n", "ppo", "RL")
    assert best == [
        (0.0, 0.0),
        *((pytest.approx(math.sqrt(k)), pytest.approx(g)) for k, g in ((0.4, 0.2), (1.0, 0.3), (1.8, 0.25))),
    ]
    assert truth[0] == (0.0, 0.0)
    assert truth[-1] == (1.0, pytest.approx(0.35))
    assert [score for _, score in proxy] == [
        0.0,
        0.0,
        1.0,
        3.0,
    ]  # that of the reference is 1; the last look is the end
    assert [found.law for _, found in fits(arms, outcomes)] == ["best of n", "RL"]
