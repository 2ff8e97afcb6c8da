"""Figures from measurements written by hand: what is derived, what is separated, and that nothing else is ranked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from truing.compare.standing import (
    ACCURACY,
    ACCURACY_PER_TOKEN,
    FORGETTING,
    KL,
    LOSS,
    WINS,
    WINS_AT_LENGTH,
    Field,
    Figure,
    Standing,
    stand,
    standings,
)
from truing.evaluate.held_out import Likelihoods, Measured, Pairs, Written
from truing.evaluate.intervals import Resamples

ROWS = tuple(range(1, 41))
GROUPS = {"demonstration": list(range(40)), "comparison": list(range(40)), "prompt": list(range(40))}
NOISE = np.random.default_rng(0).normal(0.0, 5.0, size=40)


def measured(*, shift: float = 0.0, right: int = 20, score: float = 0.0, ratio: float = 0.0) -> Measured:
    """Answers of 10 tokens whose loss is 4 less `shift`, and hard or easy by row."""
    logprobs = tuple((-40.0 + 10 * shift + NOISE).tolist())
    chosen = tuple(-1.0 if n < right else -3.0 for n in range(40))
    return Measured(
        Likelihoods(ROWS, logprobs, (10,) * 40),
        Pairs(ROWS, chosen, (-2.0,) * 40, (1,) * 40, (4,) * 40, by_score=False),
        tuple(Written(row, "text", 8, True, ratio, score + float(NOISE[row - 1])) for row in ROWS),
        Likelihoods(ROWS, logprobs, (10,) * 40),
    )


def found(results: dict[str, list[Measured]]) -> dict[Figure, Standing]:
    return {one.figure: one for one in standings(Field({"start": [measured()], **results}, "start", GROUPS))}


def test_figures_are_what_they_are_derived_to_be() -> None:
    figures = found({"dpo": [measured(shift=0.5, right=30, score=1.0, ratio=2.5)]})
    values = {figure: one.estimates["dpo"].value for figure, one in figures.items()}
    assert values[LOSS] == pytest.approx(4.0 - 0.5 - NOISE.mean() / 10)
    assert values[ACCURACY] == 30 / 40
    assert values[ACCURACY_PER_TOKEN] == 0.0  # −1 for one token is less than −2 for four, a token
    assert values[WINS] == 1.0
    assert values[WINS_AT_LENGTH] == pytest.approx(1.0, abs=1e-6)
    assert values[KL] == 2.5
    assert values[FORGETTING] == pytest.approx(-0.5)


def test_the_start_ties_with_itself_and_is_at_no_distance() -> None:
    figures = found({"dpo": [measured()]})
    assert figures[WINS].estimates["start"].interval() == (0.5, 0.5)
    assert figures[FORGETTING].estimates["start"].interval() == (0.0, 0.0)


def test_identical_results_are_never_separated() -> None:
    same = measured(shift=0.3, score=1.0)
    for standing in found({"dpo": [same], "kto": [same]}).values():
        if standing.best in ("dpo", "kto"):
            other = "kto" if standing.best == "dpo" else "dpo"
            difference = standing.differences[other]
            assert (difference.value, difference.low, difference.high, difference.separated) == (0.0, 0.0, 0.0, False)
            assert other in standing.tied


def test_a_small_difference_that_all_prompts_share_is_separated_and_one_of_chance_is_not() -> None:
    shaken = np.random.default_rng(1).normal(0.2, 5.0, size=40)
    same = measured()
    assert same.answers is not None
    moved = tuple((np.array(same.answers.logprobs) + shaken).tolist())
    lucky = dataclasses.replace(same, answers=dataclasses.replace(same.answers, logprobs=moved))
    losses = found({"steady": [measured(shift=0.1)], "lucky": [lucky]})[LOSS]
    assert losses.best == "steady"
    assert losses.behind == ("start",)
    assert losses.tied == ("lucky",)


def test_of_more_results_each_difference_needs_a_wider_interval() -> None:
    generator = np.random.default_rng(2)
    resamples = Resamples.draw(40)
    values = {f"m{n}": generator.normal(size=(1, 40)) for n in range(6)}
    estimates = {name: resamples.ratio(own, np.ones_like(own)) for name, own in values.items()}
    assert stand(LOSS, estimates).level == pytest.approx(1 - 0.05 / 5)
    assert stand(LOSS, dict(list(estimates.items())[:2])).level == pytest.approx(0.95)


def test_what_has_no_good_end_has_no_best() -> None:
    standing = found({"dpo": [measured(ratio=3.0)]})[KL]
    assert standing.best is None
    assert standing.differences == {}


def test_a_reward_model_is_compared_by_its_preferences_alone() -> None:
    pairs = Pairs(ROWS, (1.0,) * 40, (0.0,) * 40, (1,) * 40, (4,) * 40, by_score=True)
    figures = found({"reward": [Measured(None, pairs, None, None)]})
    assert figures[ACCURACY].estimates["reward"].value == 1.0
    assert all("reward" not in one.estimates for figure, one in figures.items() if figure != ACCURACY)


def test_without_a_judge_there_is_no_win_rate() -> None:
    unjudged = dataclasses.replace(measured(), written=(Written(1, "text", 8, True, 0.0, None),))
    field = Field({"start": [unjudged], "dpo": [unjudged]}, "start", GROUPS)
    assert {WINS, WINS_AT_LENGTH}.isdisjoint(one.figure for one in standings(field))


def test_several_seeds_widen_the_interval_by_how_much_they_differ() -> None:
    alike = found({"dpo": [measured(shift=0.5), measured(shift=0.5)]})[LOSS].estimates["dpo"]
    apart = found({"dpo": [measured(shift=0.0), measured(shift=1.0)]})[LOSS].estimates["dpo"]
    assert alike.value == pytest.approx(apart.value)
    assert apart.draws.std() > 2 * alike.draws.std()
