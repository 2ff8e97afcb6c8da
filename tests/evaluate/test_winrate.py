"""Win-rates against judges whose mind is known: fair, of length alone, and of both."""

from __future__ import annotations

import numpy as np
import pytest

from truing.evaluate.intervals import Doubles, Resamples
from truing.evaluate.winrate import length_controlled, mean, outcomes

N = 400


def apart(count: int = N) -> tuple[np.ndarray, Resamples]:
    """Each completion its own cluster."""
    return np.arange(count), Resamples.draw(count, count=500)


def longer(by: float, seed: int = 0) -> Doubles:
    """Differences of length in whole tokens: a result that writes longer answers where the mean is above 0."""
    return np.round(np.random.default_rng(seed).normal(by, 10.0, size=(1, N)))


def logistic(values: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-values))


def test_ties_count_half() -> None:
    wins = outcomes(np.array([[1.0, 2.0, 3.0, 3.0]]), np.array([[1.0, 1.0, 4.0, 3.0]]))
    assert wins.tolist() == [[0.5, 1.0, 0.0, 0.5]]
    assert mean(wins, *apart(4)).value == 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_with_equal_lengths_the_rate_at_equal_length_is_the_raw_one(share: float) -> None:
    wins = (np.arange(N) < share * N).astype(float)[None]
    for same in (np.zeros((1, N)), np.full((1, N), 7.0)):
        raw, controlled = mean(wins, *apart()), length_controlled(wins, same, *apart())
        assert controlled.value == pytest.approx(raw.value, abs=1e-9)
        assert controlled.interval() == pytest.approx(raw.interval(), abs=1e-9)


def test_a_judge_of_length_alone_gives_half_at_equal_length_and_much_more_without() -> None:
    by = longer(by=8.0)
    chance = logistic(by / 5)
    found = []
    for seed in range(20):
        wins = (np.random.default_rng(seed).random((1, N)) < chance).astype(float)
        assert mean(wins, *apart()).value > 0.65
        found.append(length_controlled(wins, by, np.arange(N), Resamples.draw(N, count=200)))
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.03)
    assert sum(one.excludes(0.5) for one in found) <= 3, "one in twenty by chance"


def test_so_does_one_who_always_takes_the_longer() -> None:
    by = longer(by=8.0)
    controlled = length_controlled(outcomes(by, np.zeros_like(by)), by, *apart())
    assert controlled.value == pytest.approx(0.5, abs=0.08)


def test_a_quality_that_length_hides_is_found() -> None:
    """P(win) = σ(1 + 2 tanh(Δ / std Δ)) of a result that writes shorter: at equal length it wins σ(1) = 73 %."""
    by = longer(by=-10.0)
    chance = logistic(1.0 + 2.0 * np.tanh(by / by.std()))
    found = [
        length_controlled((np.random.default_rng(seed).random((1, N)) < chance).astype(float), by, *apart()).value
        for seed in range(10)
    ]
    assert np.mean(found) == pytest.approx(logistic(np.array(1.0)), abs=0.03)
    assert float(chance.mean()) < 0.5


def test_what_always_wins_has_a_rate_of_one_and_what_never_does_of_none() -> None:
    for outcome in (0.0, 1.0):
        found = length_controlled(np.full((1, N), outcome), longer(3.0), *apart())
        assert found.value == pytest.approx(outcome, abs=1e-4)
        assert np.isfinite(found.draws).all()


def test_swapping_the_two_sides_turns_the_rate_around() -> None:
    by = longer(by=4.0)
    wins = (np.random.default_rng(2).random((1, N)) < logistic(by / 20 + 0.5)).astype(float)
    one, other = length_controlled(wins, by, *apart()), length_controlled(1 - wins, -by, *apart())
    assert one.value + other.value == pytest.approx(1.0, abs=1e-8)


def test_completions_of_one_prompt_widen_the_interval() -> None:
    by = np.repeat(longer(0.0)[:, :100], 4, axis=1)
    wins = np.repeat((np.random.default_rng(3).random((1, 100)) < 0.6).astype(float), 4, axis=1)
    clusters = np.repeat(np.arange(100), 4)
    together = length_controlled(wins, by, clusters, Resamples.draw(100, count=500))
    naive = length_controlled(wins, by, *apart())
    assert together.value == pytest.approx(naive.value)
    assert together.draws.std() > 1.7 * naive.draws.std()


def test_the_rate_of_several_seeds_is_their_mean() -> None:
    by = np.concatenate([longer(2.0, seed) for seed in range(3)])
    wins = (np.random.default_rng(4).random((3, N)) < 0.7).astype(float)
    clusters, _ = apart()
    several = length_controlled(wins, by, clusters, Resamples.draw(N, seeds=3, count=300))
    single = [length_controlled(wins[s : s + 1], by[s : s + 1], *apart()).value for s in range(3)]
    assert several.value == pytest.approx(np.mean(single))
