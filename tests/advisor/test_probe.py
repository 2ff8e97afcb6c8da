from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.advisor.made import case, ground
from truing.advisor.advice import advise
from truing.advisor.decide import Decision, decide, runner_up
from truing.advisor.look import Look
from truing.advisor.probe import candidates, judged, probe
from truing.compare.folder import START
from truing.compare.request import Budget
from truing.compare.standing import ACCURACY, Difference, Standing
from truing.planner.architecture import read_architecture

CASE = case(comparisons=300, examples=300)


def chosen() -> tuple[Decision, Decision]:
    second = runner_up(CASE)
    assert second is not None
    return decide(CASE), second


def standing(best: str, apart: bool) -> Standing:
    others = [name for name in ("dpo", "ipo", START) if name != best]
    return Standing(ACCURACY, {}, best, {name: Difference(-0.1, -0.2, -0.05, apart) for name in others}, 0.95)


def test_a_clear_measurement_overrules_the_rule_and_says_so() -> None:
    trial = judged(standing("ipo", apart=True), chosen())
    assert trial.overruled is not None
    assert trial.overruled.use == "ipo"
    assert trial.sentence.startswith("The measurement overrules the rule: ipo is best")
    assert "−10.0 % (−20.0 % to −5.0 %)" in trial.sentence


def test_chance_overrules_nothing() -> None:
    trial = judged(standing("ipo", apart=False), chosen())
    assert trial.overruled is None
    assert "does not separate dpo from ipo" in trial.sentence


def test_agreement_and_harm_are_told() -> None:
    assert "agrees" in judged(standing("dpo", apart=True), chosen()).sentence
    harm = judged(standing(START, apart=True), chosen())
    assert harm.overruled is None
    assert "it does harm" in harm.sentence


def test_the_overruled_advice_becomes_the_second_choice(tmp_path: Path) -> None:
    found = made_look(tmp_path)
    _, second = chosen()
    advice = advise(found, second)
    assert advice.decision.use == "ipo"
    assert advice.runner_up is not None
    assert advice.runner_up.use == "dpo"
    assert advice.recipe is not None
    assert advice.recipe["stages"][-1]["objective"]["use"] == "ipo"


def made_look(folder: Path) -> Look:
    there = ground(folder, "comparison", count=80)
    return Look((), CASE, there, read_architecture(Path(there.model)))


def test_only_what_the_data_can_train_is_tried(tmp_path: Path) -> None:
    found = made_look(tmp_path)
    assert [one.use for one in candidates(advise(found))] == ["dpo", "ipo"]
    serving = replace(found, case=case(comparisons=300, goal="serving"))
    assert "best_of_n" not in [one.use for one in candidates(advise(serving))]


@pytest.mark.slow
def test_a_trial_trains_both_and_ends_in_a_sentence(tmp_path: Path) -> None:
    advice = advise(made_look(tmp_path))
    trial = probe(advice, candidates(advice), Budget.parse("steps=2"), tmp_path / "trials")
    assert trial.candidates == ("dpo", "ipo")
    assert any(word in trial.sentence for word in ("agrees", "does not separate", "overrules", "harm"))
    assert (tmp_path / "trials" / "report.html").is_file()
