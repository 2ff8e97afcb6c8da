from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.lab import made
from truing.core.errors import InputError, RunError
from truing.evaluate.board import LineBoard
from truing.lab.arms import BASE, REFERENCE, Experiment
from truing.lab.experiment import run_experiment
from truing.lab.summary import summarise
from truing.tour.advice import conclusions, recommendation
from truing.tour.arms import LORA_SFT, PPO, PPO_FREE, REWARD, tour_experiment
from truing.tour.page import tour_page
from truing.tour.tour import run_tour
from truing.world.records import WorldSettings


def small(seeds: tuple[int, ...] = (0,)) -> Experiment:
    """The tour with a handful of steps an arm."""
    whole = tour_experiment(seeds, quick=True)
    arms = []
    for arm in whole.arms:
        stage = {**arm.stage, "optim": {**arm.stage["optim"], "max_steps": 4}, "batch": {"examples": 2}}
        arms.append(made.arm(arm.name, **{**_fields(arm), "stage": stage}))
    base = {**whole.base, "optim": {"lr": 1e-2, "max_steps": 4}, "batch": {"examples": 8}}
    world = WorldSettings(corpus=200, demonstrations=100, pairs=300, judgements=100, test_pairs=20)
    return Experiment(tuple(arms), base, world, seeds, prompts=1, looks=1)


def _fields(arm: object) -> dict[str, object]:
    return {name: getattr(arm, name) for name in ("data", "start", "reward", "world", "why", "tags")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tour")
    run_experiment(small(), folder, LineBoard(lambda name, done: name, lambda name: ""))
    return folder


def test_every_arm_is_a_run_of_its_own_recipe_and_ends_in_a_measured_result(ran: Path) -> None:
    for arm in small().arms:
        assert (ran / "recipes" / f"{arm.folder}.yaml").is_file()
        assert (ran / "seed-0" / arm.folder / "final").is_dir()
        assert (ran / "seed-0" / f"{arm.folder}.outcome.json").is_file()


def test_what_is_done_is_not_done_again_and_what_is_missing_is_made_with_the_same_numbers(ran: Path) -> None:
    experiment, told = small(), list[str]()
    before = run_experiment(experiment, ran, LineBoard(lambda name, done: name, lambda name: told.append(name) or ""))
    assert not told
    outcome = ran / "seed-0" / "dpo.outcome.json"
    weights = ran / "seed-0" / "dpo" / "final" / "adapter_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).digest()
    outcome.unlink()
    after = run_experiment(experiment, ran, LineBoard(lambda name, done: name, lambda name: told.append(name) or ""))
    assert told == ["recipes", "dpo"]
    assert hashlib.sha256(weights.read_bytes()).digest() == digest
    for one, other in zip(before, after, strict=True):
        assert (one.arm, one.reward, one.kl, one.looks, one.answers) == (
            other.arm,
            other.reward,
            other.kl,
            other.looks,
            other.answers,
        )


def test_a_wrong_value_in_any_arm_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = made.arm("cdpo", stage={"objective": {"use": "cdpo", "label_smoothing": 0}, "optim": {"max_steps": 1}})
    experiment = Experiment((*small().arms, wrong), small().base, small().world, prompts=1)
    with pytest.raises(InputError, match="label_smoothing"):
        run_experiment(experiment, tmp_path, LineBoard(lambda name, done: name, lambda name: ""))
    assert not (tmp_path / "base").exists()


def test_the_reference_is_where_divergence_begins_and_looks_lead_to_the_end(ran: Path) -> None:
    outcomes = {one.arm: one for one in run_experiment(small(), ran, LineBoard(lambda n, d: n, lambda n: ""))}
    assert outcomes[REFERENCE].kl == (0.0,)
    for name in ("dpo", "kto", PPO):
        assert outcomes[name].kl[0] > 0
        assert [look.step for look in outcomes[name].looks] == [2, 4]
        assert outcomes[name].looks[-1].reward == pytest.approx(outcomes[name].reward[0], abs=0.02)


def test_the_page_tells_all_arms_and_asks_nobody_for_anything(ran: Path) -> None:
    experiment = small()
    outcomes = run_experiment(experiment, ran, LineBoard(lambda name, done: name, lambda name: ""))
    html = tour_page(experiment, summarise(experiment, outcomes), outcomes, "A machine.", "truing tour")
    for arm in experiment.arms:
        assert arm.name in html or arm.scores
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert "<script" not in html


def policies(**rewards: tuple[float, ...]) -> tuple[Experiment, list]:
    """A tour whose outcomes are given; what is not named gains nothing."""
    experiment = tour_experiment((0,), quick=False)
    outcomes = [made.base(), made.reference()]
    for arm in experiment.arms:
        if arm.scores:
            outcomes.append(made.scorer(arm.name))
        elif arm.name != REFERENCE:
            reward = rewards.get(arm.name.replace(", ", "_").replace(" ", "_"), (0.4, 0.41, 0.39))
            outcomes.append(made.outcome(arm.name, reward, figures={"proxy/proxy": 2.0}))
    return experiment, outcomes


def test_conclusions_rank_nothing_that_the_intervals_do_not_tell_apart() -> None:
    experiment, outcomes = policies(dpo=(0.9, 0.95, 0.7), kto=(0.7, 0.95, 0.9))
    told = conclusions(summarise(experiment, outcomes))
    assert "do not tell it from" in told[0]
    assert "kto" in told[0]
    assert "dpo" in told[0]
    experiment, outcomes = policies(dpo=(0.9, 0.91, 0.9))
    told = conclusions(summarise(experiment, outcomes))
    assert told[0].startswith("dpo has the highest true reward, 0.903")
    assert "above every other beyond the intervals" in told[0]


def test_the_recommendation_follows_from_the_measurement() -> None:
    experiment, outcomes = policies(dpo=(0.6, 0.61, 0.6))
    assert "added 0.20 of reward" in recommendation(summarise(experiment, outcomes))
    experiment, outcomes = policies(dpo=(0.2, 0.41, 0.6))
    assert "no evidence" in recommendation(summarise(experiment, outcomes))


def test_ppo_without_its_kl_term_is_called_exploitation_only_where_the_truth_fell() -> None:
    experiment, outcomes = policies(ppo=(0.7, 0.71, 0.7), ppo_without_KL=(0.5, 0.52, 0.51))
    assert any("less in truth" in told for told in conclusions(summarise(experiment, outcomes)))
    experiment, outcomes = policies(ppo=(0.7, 0.71, 0.7), ppo_without_KL=(0.8, 0.82, 0.81))
    assert not any("less in truth" in told for told in conclusions(summarise(experiment, outcomes)))


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds no tour"):
        run_tour(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_tour_has_every_method_that_it_promises() -> None:
    arms = {arm.name: arm for arm in tour_experiment((0,), quick=False).arms}
    assert {REFERENCE, REWARD, PPO, PPO_FREE, "dpo", "kto", "dpo on all weights", LORA_SFT} == set(arms)
    assert arms[PPO].stage["objective"]["kl_coef"] > 0 == arms[PPO_FREE].stage["objective"]["kl_coef"]
    assert arms[REFERENCE].start == BASE
    assert json.dumps(arms[PPO].stage["optim"]) == json.dumps(arms[PPO_FREE].stage["optim"])
