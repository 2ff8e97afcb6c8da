from __future__ import annotations

import json
import math

import pytest

from tests.lab import made
from truing.core.errors import InputError
from truing.lab.arms import Arm, Outcome
from truing.lab.summary import Interval, difference, summarise


def test_an_interval_is_students() -> None:
    # Mean 2, deviation 1, three values: 4.303 / √3.
    assert Interval.of([1.0, 2.0, 3.0]) == Interval(2.0, pytest.approx(4.303 / math.sqrt(3)))


def test_one_value_separates_nothing() -> None:
    assert math.isinf(Interval.of([0.7]).half)
    assert not Interval.of([0.7]).excludes_zero


def test_what_differs_by_the_same_on_every_prompt_is_told_apart_however_much_prompts_differ() -> None:
    hard = made.outcome("a", (0.1, 0.5, 0.9))
    harder = made.outcome("b", (0.05, 0.44, 0.86))
    arms = made.experiment(made.arm("a"), made.arm("b"))
    summary = summarise(arms, [made.base(), made.reference(), hard, harder])
    assert summary.row("a").reward.half > 0.5
    assert summary.separated("a", "b")
    assert difference(summary.row("a"), summary.row("a")) == Interval(0.0, 0.0)


def test_several_seeds_are_paired_by_seed() -> None:
    arms = made.experiment(made.arm("a"), seeds=(0, 1, 2))
    outcomes = []
    for seed, reward in enumerate((0.5, 0.6, 0.7)):
        outcomes += [made.base(seed=seed), made.reference(seed=seed), made.outcome("a", (reward,) * 3, seed=seed)]
    summary = summarise(arms, outcomes)
    assert summary.row("a").reward.mean == pytest.approx(0.6)
    assert summary.row("a").reward.half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert summary.basis == "over 3 seeds"


def test_regret_is_measured_against_the_optimum_of_the_same_divergence() -> None:
    arms = made.experiment(made.arm("a"))
    summary = summarise(arms, [made.base(), made.reference(), made.outcome("a", (0.5,) * 3, kl=0.2)])
    assert summary.row("a").regret == pytest.approx(summary.frontier.reward_at(0.2) - 0.5)
    assert summary.row("sft").regret == pytest.approx(0, abs=1e-12)


def test_a_reward_model_becomes_the_best_of_sixteen() -> None:
    arms = made.experiment(made.arm("reward", stage={"objective": {"use": "reward"}}))
    summary = summarise(arms, [made.base(), made.reference(), made.scorer()])
    row = summary.row("best of 16")
    assert (row.reward.mean, row.kl, row.proxy) == (pytest.approx(0.7), 1.0, 16.0)


def test_two_reward_models_are_told_apart_by_name() -> None:
    stage = {"objective": {"use": "reward"}}
    arms = made.experiment(made.arm("small", stage=stage), made.arm("large", stage=stage))
    summary = summarise(arms, [made.base(), made.reference(), made.scorer("small"), made.scorer("large")])
    assert [row.arm for row in summary.rows][2:] == ["best of 16, small", "best of 16, large"]


def test_a_truth_that_fell_on_the_way_and_spikes_are_told() -> None:
    fell = made.outcome("a", (0.5,) * 3, looks=(made.look(1, 0.7, 0.1), made.look(2, 0.5, 0.2)), spikes=2)
    summary = summarise(made.experiment(made.arm("a")), [made.base(), made.reference(), fell])
    assert summary.row("a").stability == "2 gradient spikes, the truth fell"
    assert summary.row("sft").stability == "steady"


@pytest.mark.parametrize(
    "found", [made.scorer(), made.reference(), made.outcome("a", (0.1,), looks=(made.look(1, 0.2, 0.3, 1.0),))]
)
def test_an_outcome_survives_being_written_down(found: Outcome) -> None:
    assert Outcome.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize(
    ("arms", "complaint"),
    [
        ((made.arm("a", start="b"), made.arm("b")), "'a' needs 'b'"),
        ((made.arm("a"), made.arm("a")), "two arms are called 'a'"),
        ((made.arm("a", reward="reward"),), "needs 'reward'"),
    ],
)
def test_arms_that_cannot_be_run_are_refused(arms: tuple[Arm, ...], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        made.experiment(*arms)
