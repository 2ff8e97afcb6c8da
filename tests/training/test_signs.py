"""Signs of trouble: each speaks where it should, and is silent about healthy noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.test_health import Rows, metrics_complained_of, rows_of
from truing.training.guard_settings import LimitSettings
from truing.training.health import complaints
from truing.training.signs import Complaint, Facts


def with_evaluations(rows: Rows, **columns: dict[int, float]) -> Rows:
    """Put figures into the rows of some steps; `__` in a name stands for `/`."""
    for name, values in columns.items():
        for step, value in values.items():
            rows[step - 1][name.replace("__", "/")] = value
    return rows


def the_one(rows: Rows, facts: Facts | None = None) -> Complaint:
    (found,) = complaints(rows, facts)
    return found


def judged(scores: list[float], half_width: float = 0.05, every: int = 10, **start: float) -> Rows:
    """A run whose start and evaluations were given these scores."""
    rows = rows_of(loss=[1.0] * (every * (len(scores) - 1)))
    rows[0] |= {"start/judge/score": scores[0], "start/judge/half_width": half_width}
    rows[0] |= {f"start/judge/{name}": value for name, value in start.items()}
    for place, score in enumerate(scores[1:], start=1):
        rows[every * place - 1] |= {"judge/score": score, "judge/half_width": half_width}
    return rows


def test_a_loss_above_that_of_the_first_step_is_a_complaint_as_a_mean_of_ten_steps() -> None:
    # Means of ten: at step 11 (9·1 + 1·3 + …)/10: nine 1.0 and one 3.0 give 1.2, two of them 1.4 > 1.3 at step 12.
    found = the_one(rows_of(loss=[1.0] * 10 + [3.0] * 10))
    assert (found.monitor, found.metric, found.step) == ("loss", "loss", 12)
    assert complaints(rows_of(loss=[1.0] * 10 + [3.0] + [1.0] * 20)) == [], "one bad batch"


def test_a_held_out_loss_above_the_first_is_a_complaint_at_once() -> None:
    rows = with_evaluations(rows_of(loss=[0.693] * 20), eval_loss={10: 0.7, 20: 0.92})
    found = the_one(rows)
    assert (found.monitor, found.metric, found.step) == ("loss", "eval_loss", 20)
    assert complaints(rows, Facts(LimitSettings(loss=1.4))) == [], "1.4 times 0.693 is 0.97"


def test_the_loss_of_rollouts_says_nothing() -> None:
    assert complaints(rows_of(loss=[0.1] * 10 + [5.0] * 20, objective__scores=[1.0] * 30)) == []


def test_held_out_loss_that_rises_while_the_training_loss_falls_is_overfitting() -> None:
    falls = [1.0 - 0.01 * x for x in range(50)]
    rising = {10: 0.9, 20: 0.8, 30: 0.89, 40: 0.9, 50: 0.95}
    found = the_one(with_evaluations(rows_of(loss=list(falls)), eval_loss=rising))
    assert (found.monitor, found.step) == ("overfit", 40), "the second evaluation above 1.1 · 0.8 = 0.88"
    once = {10: 0.9, 20: 0.8, 30: 0.89, 40: 0.8, 50: 0.89}
    assert complaints(with_evaluations(rows_of(loss=list(falls)), eval_loss=once)) == []
    assert complaints(with_evaluations(rows_of(loss=[0.95] * 50), eval_loss=rising)) == [], "training is no better"


def test_so_many_steps_in_a_row_without_a_finite_gradient_are_told_from_single_ones() -> None:
    assert [each.monitor for each in complaints(rows_of(grad_norm=[1.0, None, None, 1.0, None]))] == ["skipped"]
    found = complaints(rows_of(grad_norm=[1.0, None, 1.0, None, None, None]))
    assert [(each.monitor, each.step) for each in found] == [("skipped", 2), ("non_finite", 6)]


def test_a_reference_point_of_0_is_healthy_while_the_margin_grows() -> None:
    grows = [0.05 * x for x in range(40)]
    assert the_one(rows_of(kl=[0.0] * 40, rewards__margins=[0.0] * 40)).monitor == "kto_reference_point"
    assert complaints(rows_of(kl=[0.0] * 40, rewards__margins=list(grows))) == []


def test_desirable_answers_that_fall_much_less_than_undesirable_ones_are_healthy() -> None:
    falls = [-0.1 * x for x in range(40)]
    together = rows_of(kl=[0.1] * 40, rewards__chosen=[0.6 * x for x in falls], rewards__rejected=list(falls))
    assert the_one(together).monitor == "kto_rewards"
    assert complaints(rows_of(kl=[0.1] * 40, rewards__chosen=[0.3 * x for x in falls], rewards__rejected=falls)) == []


def test_margins_beyond_their_limit_are_a_complaint() -> None:
    assert the_one(rows_of(rewards__margins=[1.0] * 5 + [14.0] * 10)).monitor == "margin"
    assert complaints(rows_of(rewards__margins=[9.0] * 20)) == []


def test_twice_the_kl_budget_is_a_complaint_of_its_own() -> None:
    found = complaints(rows_of(objective__kl=[0.0] * 5 + [12.0] * 5 + [25.0] * 10))
    assert [(each.monitor, each.step) for each in found] == [("kl", 10), ("kl_twice", 14)]


def test_longer_completions_are_only_gamed_where_length_is_paid_for() -> None:
    longer = [10.0] * 20 + [13.0] * 30
    paid = rows_of(completions__length=longer, rewards__length_correlation=[0.7] * 50)
    assert metrics_complained_of(paid) == ["rewards/length_correlation"]
    assert complaints(rows_of(completions__length=longer, rewards__length_correlation=[0.3] * 50)) == []
    assert complaints(rows_of(completions__length=[10.0] * 50, rewards__length_correlation=[0.7] * 50)) == []


def test_completions_that_no_longer_end_are_a_complaint() -> None:
    found = the_one(rows_of(completions__ended=[0.9] * 10 + [0.5] * 10))
    assert found.monitor == "end_rate"
    assert "90% did at the start" in found.sentence
    assert complaints(rows_of(completions__ended=[0.9] * 10 + [0.7] * 10)) == []
    rows = judged([0.5, 0.5], end_rate=1.0)
    assert the_one(with_evaluations(rows, judge__end_rate={10: 0.6})).metric == "judge/end_rate"


def test_judged_answers_half_as_long_again_are_a_complaint() -> None:
    rows = judged([0.5, 0.5, 0.5], length=10.0)
    assert complaints(with_evaluations(rows, judge__length={10: 14.0})) == []
    found = the_one(with_evaluations(rows, judge__length={20: 16.0}))
    assert (found.monitor, found.step) == ("length", 20)


def test_the_judge_falls_when_two_evaluations_in_a_row_are_below_the_best_by_more_than_their_noise() -> None:
    # The noise of a difference is √(0.05² + 0.05²) = 0.071.
    found = the_one(judged([0.5, 0.7, 0.6, 0.62]))
    assert (found.monitor, found.step) == ("judge_falls", 30)
    assert "from 0.7 at step 10 to 0.62 at step 30" in found.sentence
    assert complaints(judged([0.5, 0.7, 0.6, 0.65])) == [], "0.05 is noise"
    assert complaints(judged([0.5, 0.7, 0.6, 0.7, 0.6])) == [], "never twice in a row"


def test_below_the_start_counts_as_a_fall_too() -> None:
    assert the_one(judged([0.5, 0.4, 0.35])).step == 20
    assert complaints(judged([0.5, 0.4])) == [], "one evaluation is no trend"


def test_the_sentence_tells_a_worse_model_from_a_gamed_reward() -> None:
    scores = [0.5, 0.4, 0.3]
    assert "the model gets worse" in the_one(judged(scores)).sentence
    rows = judged(scores)
    for place, row in enumerate(rows):
        row["rewards/margins"] = 0.1 * place
    assert "rewards/margins rose" in the_one(rows).sentence


def test_the_gap_grows_when_the_proxy_rises_three_times_while_the_judge_falls() -> None:
    def run(scores: list[float]) -> Rows:
        rows = judged(scores)
        for place, row in enumerate(rows):
            row["objective/scores"] = 0.1 * place
        return rows

    found = the_one(run([0.5, 0.49, 0.46, 0.42]))
    assert (found.monitor, found.step) == ("judge_gap", 30)
    assert complaints(run([0.5, 0.49, 0.5, 0.42])) == [], "it rose in between"
    assert complaints(run([0.5, 0.49, 0.48, 0.47])) == [], "0.03 in all is within the noise"
    assert complaints(judged([0.5, 0.49, 0.46, 0.42])) == [], "there is no proxy"


def test_healthy_noise_is_silent() -> None:
    """Figures of a healthy PPO run, each with the noise of a batch; twenty runs of a hundred steps."""
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def noisy(mean: float, deviation: float, rng: np.random.Generator = rng) -> list[float | None]:
            return list(rng.normal(mean, deviation, size=100))

        rows: list[dict[str, Any]] = rows_of(
            loss=noisy(0.1, 0.05),
            grad_norm=[abs(x or 0.0) for x in noisy(1.0, 0.3)],
            objective__scores=noisy(0.5, 0.1),
            objective__kl=noisy(1.0, 0.2),
            objective__entropy=noisy(30.0, 3.0),
            completions__length=noisy(20.0, 2.0),
            completions__ended=noisy(0.9, 0.05),
            rewards__length_correlation=noisy(0.1, 0.2),
            policy__approxkl=[abs(x or 0.0) for x in noisy(0.01, 0.005)],
            val__explained_variance=noisy(0.4, 0.2),
        )
        scores = rng.normal(0.6, 0.015, size=6)  # the same prompts and random numbers each time
        for place, score in enumerate(scores, start=1):
            rows[15 * place - 1] |= {"judge/score": float(score), "judge/half_width": 0.04}
        rows[0] |= {"start/judge/score": 0.6, "start/judge/half_width": 0.04}
        assert [each.sentence for each in complaints(rows)] == []


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 1, "judge/score": None, "start/judge/score": "x"}]])
def test_nothing_is_said_of_nothing(rows: Rows) -> None:
    assert complaints(rows) == []
