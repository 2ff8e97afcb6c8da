from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab import made
from truing.core.errors import RunError
from truing.lab.arms import BASE, REFERENCE, Arm, Experiment
from truing.lab.experiment import Laboratory, read_outcomes
from truing.lab.terms import terms_of

SCORER = made.arm("reward", stage={"objective": {"use": "reward"}, "optim": {"max_steps": 4}})
PPO = made.arm("ppo", stage={"objective": {"use": "ppo"}}, data="training_prompts", reward="reward")
OTHER = made.arm("dpo")
EXPERIMENT = made.experiment(SCORER, PPO, OTHER)


def with_arm(name: str, **changes: Any) -> Experiment:
    arms = (replace(arm, **changes) if arm.name == name else arm for arm in EXPERIMENT.arms)
    return replace(EXPERIMENT, arms=tuple(arms))


def longer(arm: Arm) -> dict[str, Any]:
    return {**arm.stage, "optim": {"max_steps": 5}}


DECIDE: dict[str, Callable[[], Experiment]] = {
    "its own stage": lambda: with_arm("ppo", stage=longer(PPO)),
    "its data": lambda: with_arm("ppo", data="prompts"),
    "its knobs": lambda: with_arm("ppo", world={"flip_rate": 0.2}),
    "its reward model": lambda: with_arm("reward", stage=longer(SCORER)),
    "the data of its reward model": lambda: with_arm("reward", world={"flip_rate": 0.2}),
    "the program in place of its reward model": lambda: with_arm("ppo", reward="truth"),
    "the reference": lambda: with_arm(REFERENCE, stage=longer(made.SFT)),
    "the base model": lambda: replace(EXPERIMENT, base={"objective": {"use": "sft"}, "optim": {"lr": 1e-3}}),
    "the world": lambda: replace(EXPERIMENT, world=EXPERIMENT.world.model_copy(update={"pairs": 7})),
    "the prompts": lambda: replace(EXPERIMENT, prompts=4),
    "the looks": lambda: replace(EXPERIMENT, looks=2),
}
DO_NOT: dict[str, Callable[[], Experiment]] = {
    "an arm it does not use": lambda: with_arm("dpo", stage=longer(OTHER)),
    "more seeds": lambda: replace(EXPERIMENT, seeds=(0, 1)),
    "what it is called in a figure": lambda: with_arm("ppo", tags={"method": "ppo"}, why="to see"),
}


@pytest.mark.parametrize("change", DECIDE)
def test_whatever_decides_how_an_arm_comes_out_changes_its_terms(change: str) -> None:
    assert terms_of(DECIDE[change](), "ppo") != terms_of(EXPERIMENT, "ppo")


@pytest.mark.parametrize("change", DO_NOT)
def test_what_does_not_decide_leaves_the_terms_alone(change: str) -> None:
    assert terms_of(DO_NOT[change](), "ppo") == terms_of(EXPERIMENT, "ppo")


def test_the_base_model_is_measured_anew_when_the_reference_or_the_prompts_change() -> None:
    asked = terms_of(EXPERIMENT, BASE)
    assert asked == terms_of(DECIDE["its own stage"](), BASE)
    for change in ("the reference", "the prompts", "the base model"):
        assert terms_of(DECIDE[change](), BASE) != asked


def test_an_outcome_is_kept_on_the_same_terms_only(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path)
    laboratory.seed(0).mkdir()
    outcome = made.outcome("ppo", (0.5, 0.25, 0.75), looks=(made.look(2, 0.5, 0.1),))
    laboratory.keep(outcome, terms_of(EXPERIMENT, "ppo"))
    assert laboratory.kept(EXPERIMENT, "ppo", 0) == outcome
    assert laboratory.kept(EXPERIMENT, "ppo", 1) is None
    assert laboratory.kept(DECIDE["its reward model"](), "ppo", 0) is None


def test_a_study_is_not_told_from_outcomes_on_other_terms(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path)
    laboratory.seed(0).mkdir()
    small = made.experiment(OTHER)
    for outcome in (made.base(), made.reference(), made.outcome("dpo", (0.5, 0.5, 0.5))):
        laboratory.keep(outcome, terms_of(small, outcome.arm))
    assert len(read_outcomes(small, tmp_path)) == 3
    with pytest.raises(RunError, match="no outcome of 'dpo' with seed 0"):
        read_outcomes(replace(small, arms=(small.arms[0], replace(OTHER, stage=longer(OTHER)))), tmp_path)


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path)
    laboratory.outcome("dpo", 0).parent.mkdir()
    laboratory.outcome("dpo", 0).write_text('{"terms": ', encoding="utf-8")
    with pytest.raises(RunError, match=r"dpo\.outcome\.json cannot be read .* delete it"):
        laboratory.kept(EXPERIMENT, "dpo", 0)
