from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.training.figures import ENTROPY, column, trailing_mean
from truing.training.guard_settings import LimitSettings
from truing.training.health import band_of, bands, complaints
from truing.training.signs import Facts

Rows = list[dict[str, Any]]

KEYS = (
    "step", "loss", "grad_norm", "objective/kl", "objective/entropy", "completions/length", "val/ratio", "kl",
    "policy/approxkl", "policy/clipfrac", "val/explained_variance", "rewards/equal_groups", "rewards/accuracies",
    "eval_rewards/accuracies", "logps/chosen", "eval_logps/chosen", "rewards/chosen", "rewards/rejected",
)  # fmt: skip


def rows_of(**columns: list[float | None]) -> Rows:
    """Rows from step 1 on; `__` in a name stands for `/`."""
    length = len(next(iter(columns.values())))
    return [
        {"step": place + 1, **{name.replace("__", "/"): values[place] for name, values in columns.items()}}
        for place in range(length)
    ]


def metrics_complained_of(rows: Rows, facts: Facts | None = None) -> list[str]:
    return [each.metric for each in complaints(rows, facts)]


def test_nothing_is_said_of_no_rows_or_of_one() -> None:
    assert complaints([]) == []
    assert complaints([{"step": 1, "loss": 0.7, "grad_norm": 1.0}]) == []


def test_a_healthy_run_has_no_complaint() -> None:
    steady = [1.0] * 40
    assert not complaints(
        rows_of(
            loss=steady,
            grad_norm=steady,
            objective__kl=[0.1 * x for x in range(40)],
            objective__entropy=[40.0 - 0.2 * x for x in range(40)],
            completions__length=[20.0] * 40,
            policy__approxkl=[0.01] * 40,
            policy__clipfrac=[0.1] * 40,
            val__ratio=steady,
            val__explained_variance=[-1.0] * 5 + [0.5] * 35,
            rewards__accuracies=[0.7] * 40,
        )
    )


def test_a_complaint_names_the_first_step_whose_mean_over_five_rows_is_outside() -> None:
    # 0.0 up to step 10, then 0.1: of the means ending at steps 11, 12, 13 (0.02, 0.04, 0.06) the third is above 0.05.
    (found,) = complaints(rows_of(policy__approxkl=[0.0] * 10 + [0.1] * 10))
    assert (found.metric, found.step) == ("policy/approxkl", 13)
    assert found.sentence.startswith("The approximate KL of an update rose above 0.05 at step 13 and is still there")


def test_what_came_back_is_said_to_have_come_back() -> None:
    (found,) = complaints(rows_of(policy__clipfrac=[0.1] * 10 + [0.9] * 5 + [0.1] * 10))
    assert "and came back" in found.sentence


def test_one_wild_batch_is_no_complaint_about_a_range() -> None:
    assert complaints(rows_of(policy__clipfrac=[0.1] * 10 + [1.0] + [0.1] * 10)) == []


def test_the_kl_budget_is_the_runs_own() -> None:
    rows = rows_of(objective__kl=[0.5 * x for x in range(20)])  # ends at 9.5
    assert metrics_complained_of(rows) == []
    assert metrics_complained_of(rows, Facts(LimitSettings(kl=5.0))) == ["objective/kl"]


def test_entropy_is_judged_per_token_against_its_start() -> None:
    length = [10.0] * 20
    halved = rows_of(objective__entropy=[30.0] * 10 + [14.0] * 10, completions__length=length)
    shorter = rows_of(objective__entropy=[30.0] * 10 + [15.0] * 10, completions__length=[10.0] * 10 + [5.0] * 10)
    assert metrics_complained_of(halved) == [ENTROPY]
    assert ENTROPY not in metrics_complained_of(shorter), "half as long with half the entropy is the same per token"


def test_answers_half_as_long_again_as_at_the_start_are_a_complaint() -> None:
    assert metrics_complained_of(rows_of(completions__length=[10.0] * 10 + [16.0] * 10)) == ["completions/length"]


def test_a_gradient_norm_above_ten_usual_ones_is_named_with_its_step() -> None:
    norms = [1.0] * 30
    norms[24] = 10.5
    (found,) = complaints(rows_of(grad_norm=norms))
    assert (found.metric, found.step) == ("grad_norm", 25)
    norms[24] = 9.5
    assert complaints(rows_of(grad_norm=norms)) == []


@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_a_null_loss_or_norm_is_a_step_that_was_not_finite(metric: str) -> None:
    (found,) = complaints(rows_of(**{metric: [1.0, None, None, 1.0]}))
    assert (found.metric, found.step) == (metric, 2)
    assert "and at 1 more" in found.sentence


def test_pairs_learned_by_heart_are_told_from_pairs_learned() -> None:
    train = [0.6] * 10 + [1.0] * 20
    at = {10: 0.6, 20: 0.7, 30: 0.7}

    def with_held_out(values: dict[int, float]) -> Rows:
        rows = rows_of(rewards__accuracies=list(train))
        for step, value in values.items():
            rows[step - 1]["eval_rewards/accuracies"] = value
        return rows

    (found,) = complaints(with_held_out(at))
    assert (found.metric, found.step) == ("rewards/accuracies", 30)
    assert complaints(with_held_out({10: 0.6, 20: 0.7, 30: 0.8})) == [], "held-out pairs still improve"
    assert complaints(with_held_out({10: 0.6, 20: 0.98, 30: 0.98})) == [], "held-out pairs are right too"


def test_chosen_answers_that_lose_a_tenth_of_a_nat_a_token_are_a_complaint() -> None:
    rows = rows_of(**{"eval_logps__chosen": [-100.0, -104.0, -111.0]})
    (found,) = complaints(rows, Facts(answer_tokens=100.0))
    assert (found.metric, found.step) == ("logps/chosen", 3)
    assert "0.11 nats a token" in found.sentence
    assert complaints(rows, Facts(answer_tokens=200.0)) == []
    assert complaints(rows) == [], "of an unknown length nothing is said per token"


def test_a_fall_within_the_noise_of_batches_is_no_complaint() -> None:
    noise = np.random.default_rng(0).normal(-100, 60, size=40).tolist()
    assert complaints(rows_of(logps__chosen=noise), Facts(answer_tokens=20.0)) == []


def test_kto_complains_when_both_rewards_fall_and_when_its_reference_point_is_stuck() -> None:
    falls = [-0.1 * x for x in range(20)]
    both = rows_of(kl=[0.0] * 20, rewards__chosen=list(falls), rewards__rejected=list(falls))
    assert metrics_complained_of(both) == ["kl", "rewards/chosen"]
    apart = rows_of(kl=[0.1] * 20, rewards__chosen=[-x for x in falls], rewards__rejected=list(falls))
    assert complaints(apart) == []
    gone = rows_of(kl=[0.1] * 6 + [0.0] * 14)
    assert complaints(gone)[0].step == 7


def test_equal_groups_are_a_complaint_only_where_groups_are_compared() -> None:
    equal = [0.9] * 10
    assert metrics_complained_of(rows_of(rewards__equal_groups=equal)) == ["rewards/equal_groups"]
    assert complaints(rows_of(rewards__equal_groups=equal, val__explained_variance=[0.5] * 10)) == []


def test_a_critic_worse_than_a_constant_is_a_complaint_after_its_first_ten_steps() -> None:
    (found,) = complaints(rows_of(val__explained_variance=[-1.0] * 20))
    assert found.step == 11
    assert "fell below −0.05" in found.sentence
    assert complaints(rows_of(val__explained_variance=[-1.0] * 6 + [0.5] * 14)) == []


def test_a_range_relative_to_the_start_is_given_in_the_figures_own_unit() -> None:
    band = band_of("completions/length", Facts())
    assert band is not None
    assert band.bounds(rows_of(completions__length=[10.0] * 5 + [99.0])) == (8.0, 12.0)


def test_each_range_warns_outside_of_what_is_healthy() -> None:
    for band in bands(LimitSettings()):
        assert band.warn_high is None or band.high is None or band.warn_high >= band.high
        assert band.warn_low is None or band.low is None or band.warn_low <= band.low


def test_a_column_leaves_out_what_is_no_number() -> None:
    rows: Rows = [{"step": 1, "x": 1}, {"step": 2, "x": None}, {"step": 3, "x": "5"}, {"step": 4, "x": True}, {"x": 2}]
    rows += [{"step": 5, "x": float("nan")}, {"step": 6, "x": 10**400}, {"step": 7, "x": 2.5}]
    steps, values = column(rows, "x")
    assert steps.tolist() == [1, 7]
    assert values.tolist() == [1.0, 2.5]


def test_a_trailing_mean_forgets_a_huge_value_when_it_is_out_of_the_window() -> None:
    values = np.array([1e90] + [1.0] * 6)
    assert trailing_mean(values, 5)[-1] == 1.0


values = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3), st.just(0.0), st.floats(-1e3, 1e3))


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), values), max_size=60))
def test_no_rows_break_the_judgement(rows: Rows) -> None:
    for found in complaints(rows, Facts(answer_tokens=10.0)):
        assert found.sentence.isprintable()


def test_bands_are_read_without_torch() -> None:
    code = "import sys, truing.training.health; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
