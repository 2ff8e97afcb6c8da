"""How log-probs of a server tell whether it follows the policy: values by hand, and laws under noise."""

from __future__ import annotations

import numpy as np
import pytest

from truing.rl.following import Agreement, Known


def test_gap_and_way_are_what_a_pencil_gives() -> None:
    """Moved by (1, -1), seen at (0.5, -0.5) of it: half the way, half a nat off; nothing is left to explain."""
    known = Known(policy=np.array([-1.0, -3.0]), start=np.array([-2.0, -2.0]))
    found = Agreement.of(np.array([-1.5, -2.5]), known)
    assert (found.gap, found.way, found.error) == (0.5, 0.5, 0.0)
    assert not found.stays_behind


def test_a_remainder_beside_the_way_makes_it_uncertain() -> None:
    """Moved by (1, 1), seen (1, 0): way (1 + 0) / 2, remainders ±0.5, error √(0.25 / 2)."""
    found = Agreement.of(np.array([1.0, 0.0]), Known(policy=np.array([1.0, 1.0]), start=np.zeros(2)))
    assert found.way == pytest.approx(0.5)
    assert found.error == pytest.approx(np.sqrt(0.25 / 2))


def test_a_policy_that_has_not_moved_tells_nothing_of_the_way() -> None:
    found = Agreement.of(np.array([-1.0]), Known(policy=np.array([-1.5]), start=np.array([-1.5])))
    assert found.gap == 0.5
    assert np.isnan(found.way)
    assert not found.stays_behind


@pytest.mark.parametrize("noise", [1e-7, 0.01, 0.1])
@pytest.mark.parametrize("coarser", [1.0, 1.5])
def test_no_server_that_follows_is_called_behind_however_all_round(noise: float, coarser: float) -> None:
    """The start's rounding stands in both differences, and an adapter's arithmetic may be coarser than its base's."""
    draw = np.random.default_rng(0)
    for step in np.geomspace(1e-6, 1.0, 200):
        start = draw.normal(-2.0, 1.0, 1024)
        policy = start + step * draw.normal(size=1024)
        server, own, base = (noise * draw.normal(size=1024) for _ in range(3))
        assert not Agreement.of(policy + coarser * server, Known(policy + coarser * own, start + base)).stays_behind


def test_a_server_that_stays_is_found_by_a_change_of_three_times_the_rounding() -> None:
    """Its way tends to 1 / (9 + 2) with an error of 0.4 / √1024, and what is lost is far below a limit on the gap."""
    draw = np.random.default_rng(1)
    start = draw.normal(-2.0, 1.0, 1024)
    policy = start + 0.03 * draw.normal(size=1024)
    server, own, base = (0.01 * draw.normal(size=1024) for _ in range(3))
    found = Agreement.of(start + server, Known(policy + own, start + base))
    assert found.way == pytest.approx(1 / 11, abs=0.04)
    assert found.error == pytest.approx(0.4 / 32, rel=0.15)
    assert found.gap < 0.05
    assert found.stays_behind
