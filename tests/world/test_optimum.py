from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.world.small import SMALL
from truing.world.optimum import Frontier, Levels, Point, best_of_by
from truing.world.reward import all_rewards, true_reward

RNG = np.random.default_rng(0)


def reference(size: int, left: float = 0.1, seed: int = 0) -> np.ndarray:
    """Log-probabilities of some answers, which leave a little for everything else."""
    masses = np.random.default_rng(seed).dirichlet(np.full(size, 0.5)) * (1 - left)
    return np.log(masses)


def levels(seed: int = 0, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.round(rng.random(size), 1), reference(size, seed=seed)


def kl(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / b), 0)))


def outcomes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masses, with what is no answer as one more outcome."""
    rewards, logprobs = levels(seed)
    masses = np.exp(logprobs)
    return np.append(rewards, 0.0), np.append(masses, 1 - masses.sum())


@pytest.mark.parametrize(("beta", "short"), [(0.05, 1e-5), (0.3, 1e-9), (2.0, 1e-9)])
def test_the_optimum_is_what_numerical_optimisation_finds(beta: float, short: float) -> None:
    rewards, masses = (torch.from_numpy(x) for x in outcomes())
    logits = masses.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-14, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        logprobs = torch.log_softmax(logits, dim=0)
        return (logprobs.exp() * (rewards - beta * (logprobs - masses.log()))).sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -objective()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    best = Frontier([Levels.of(*levels())])
    assert -1e-12 <= best.objective(beta) - float(objective().detach()) <= short  # a strong tilt is badly conditioned
    found = torch.softmax(logits.detach(), 0)
    assert best.optimum(beta).reward == pytest.approx(float(found @ rewards), abs=1e-3)


@given(st.integers(0, 1000), st.floats(0, 3))
def test_no_policy_lies_above_the_frontier(seed: int, spread: float) -> None:
    rewards, masses = outcomes()
    noise = np.random.default_rng(seed).normal(size=len(masses)) * spread
    policy = masses * np.exp(noise + spread * rewards)
    policy /= policy.sum()
    point = Point(float(policy @ rewards), kl(policy, masses))
    assert Frontier([Levels.of(*levels())]).regret(point) >= -1e-9


@pytest.mark.parametrize("beta", [0.03, 0.1, 0.7, 5.0])
def test_the_optimum_lies_on_its_own_frontier(beta: float) -> None:
    frontier = Frontier([Levels.of(*levels(seed)) for seed in range(3)])
    assert frontier.regret(frontier.optimum(beta)) == pytest.approx(0, abs=1e-9)


def test_without_a_kl_term_the_optimum_gives_the_best_answers_and_with_a_strong_one_nothing_moves() -> None:
    rewards, logprobs = levels()
    best = rewards == rewards.max()
    frontier = Frontier([Levels.of(rewards, logprobs)])
    assert frontier.optimum(0).reward == rewards.max()
    assert frontier.optimum(0).kl == pytest.approx(-np.log(np.exp(logprobs[best]).sum()))
    assert frontier.optimum(1e6).kl == pytest.approx(0, abs=1e-9)
    assert frontier.optimum(1e6).reward == pytest.approx(float(np.exp(logprobs) @ rewards), abs=1e-5)
    assert frontier.reward_at(100.0) == rewards.max()
    assert frontier.reward_at(0.0) == pytest.approx(frontier.optimum(1e6).reward, abs=1e-5)


def test_the_kl_divergence_is_that_of_whole_distributions_over_answers() -> None:
    rewards, masses = outcomes()
    tilted = masses * np.exp(rewards / 0.2)
    tilted /= tilted.sum()
    found = Frontier([Levels.of(*levels())]).optimum(0.2)
    assert found.kl == pytest.approx(kl(tilted, masses), abs=1e-12)
    assert found.reward == pytest.approx(float(tilted @ rewards), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_best_of_n_is_what_all_draws_together_give(count: int) -> None:
    rewards, masses = np.array([0.0, 0.3, 0.3, 0.9]), np.array([0.1, 0.2, 0.3, 0.4])
    chosen = np.zeros(4)
    for draws in itertools.product(range(4), repeat=count):
        best = [d for d in draws if rewards[d] == max(rewards[d] for d in draws)]
        for draw in best:  # equals at random
            chosen[draw] += np.prod(masses[list(draws)]) / len(best)
    found = Frontier([Levels.of(rewards[1:], np.log(masses[1:]))]).best_of(count)
    assert found.reward == pytest.approx(float(chosen @ rewards))
    assert found.kl == pytest.approx(kl(chosen, masses))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_best_of_n_by_a_proxy_takes_what_the_proxy_likes(count: int) -> None:
    scores, rewards, masses = np.array([2.0, -1.0, 2.0, 0.5]), np.array([0.1, 0.9, 0.5, 0.3]), RNG.dirichlet(np.ones(4))
    answered = 0.9
    chosen = np.zeros(4)
    for draws in itertools.product(range(4), repeat=count):
        best = [d for d in draws if scores[d] == max(scores[d] for d in draws)]
        for draw in best:
            chosen[draw] += np.prod(masses[list(draws)]) / len(best)
    found = best_of_by(scores, rewards, np.log(answered * masses), count)
    assert found.proxy == pytest.approx(float(chosen @ scores))
    # One sample in ten is no answer, worth nothing, and is taken as often as it is drawn.
    assert found.reward == pytest.approx(answered * float(chosen @ rewards))
    whole = [np.append(answered * each, 1 - answered) for each in (chosen, masses)]
    assert found.kl == pytest.approx(kl(*whole), abs=1e-12)


@pytest.mark.parametrize("prompt", [p.text for p in SMALL.prompts[:3]])
def test_all_rewards_are_the_rewards_of_all_answers_in_their_order(prompt: str) -> None:
    found = all_rewards(SMALL.prompt(prompt), SMALL)
    assert found.tolist() == [true_reward(prompt, answer, SMALL) for answer in SMALL.answers(prompt)]
