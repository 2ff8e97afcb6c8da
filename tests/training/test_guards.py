"""What follows from complaints: who speaks, how often, and what the best state is."""

from __future__ import annotations

from typing import Any

import pytest

from truing.core.errors import RecipeError
from truing.core.settings import parse
from truing.training.guard_settings import GuardSettings, LimitSettings
from truing.training.guards import Event, Guards, best_step, decide, strongest
from truing.training.health import bands, complaints
from truing.training.signs import Complaint, Facts


def complaint(monitor: str = "kl", *, lasting: bool = True) -> Complaint:
    return Complaint(monitor, "objective/kl", 5, "It left its range.", lasting)


def event(step: int, monitor: str = "kl", action: Any = "lower") -> Event:
    return Event(step, monitor, "objective/kl", "It left its range.", action)


def watched(rows: list[dict[str, Any]], settings: GuardSettings, facts: Facts | None = None) -> list[Event]:
    guards = Guards(settings, facts or Facts())
    return [event for row in rows for event in guards.after(row)]


def far(steps: int) -> list[dict[str, Any]]:
    """A run that is over its KL budget from the fifth step on."""
    return [
        {"step": step, "loss": 1.0, "grad_norm": 1.0, "objective/kl": 50.0, "objective/scores": 0.0}
        for step in range(1, steps + 1)
    ]


def test_every_monitor_that_complains_has_an_action_in_the_recipe() -> None:
    monitors = {name for name in GuardSettings.model_fields if name != "limits"}
    assert {band.monitor for band in bands(LimitSettings())} <= monitors
    assert GuardSettings().action("judge_falls") == "restore"


def test_a_monitor_speaks_once() -> None:
    settings = GuardSettings()
    assert [each.action for each in decide([complaint()], [], settings, 5)] == ["warn"]
    assert decide([complaint()], [event(5, action="warn")], settings, 100) == []
    assert len(decide([complaint(), complaint()], [], settings, 5)) == 1, "two figures, one monitor"


def test_a_monitor_that_is_off_is_silent() -> None:
    assert decide([complaint()], [], GuardSettings(kl="off"), 5) == []


def test_the_rate_is_lowered_again_only_after_a_pause_while_it_lasts_and_three_times_in_all() -> None:
    settings = GuardSettings(kl="lower")
    assert decide([complaint()], [event(5)], settings, 24) == []
    assert len(decide([complaint()], [event(5)], settings, 25)) == 1
    assert decide([complaint(lasting=False)], [event(5)], settings, 25) == []
    assert decide([complaint()], [event(5), event(25), event(45)], settings, 100) == []


def test_each_lowering_halves_the_rate_and_a_resumed_guard_knows_it() -> None:
    settings = GuardSettings(kl="lower", kl_twice="off")
    rows = far(80)
    guards = Guards(settings)
    events = [found for row in rows for found in guards.after(row)]
    assert [each.step for each in events] == [5, 25, 45]
    assert guards.rate == 0.125
    resumed = Guards(settings)
    resumed.resume(rows[:30], [each.as_json() for each in events[:2]])
    assert resumed.rate == 0.25
    assert [found.step for row in rows[30:] for found in resumed.after(row)] == [45]


def test_watching_step_by_step_sees_what_a_report_sees() -> None:
    rows = far(60)
    for row in rows[30:]:
        row["grad_norm"] = 20.0
    seen = {each.monitor for each in watched(rows, GuardSettings(kl_twice="warn"))}
    assert seen == {each.monitor for each in complaints(rows)} == {"kl", "kl_twice", "gradient"}


def test_a_long_run_is_judged_less_often() -> None:
    rows = far(2000)
    for row in rows[:1502]:
        row["objective/kl"] = 0.0
    (first, *_) = watched(rows, GuardSettings(kl_twice="off"))
    assert 1503 < first.step <= 1503 + 5 + 2000 // 50


def test_non_finite_gradients_are_judged_at_once() -> None:
    rows = far(8)
    for row in rows[5:]:
        row["grad_norm"] = None
    events = watched(rows, GuardSettings(kl="off", kl_twice="off"))
    assert [(each.monitor, each.step, each.action) for each in events] == [
        ("skipped", 6, "warn"),
        ("non_finite", 8, "stop"),
    ]


def test_the_strongest_action_counts() -> None:
    found = strongest([event(1, action="warn"), event(1, action="restore"), event(1, action="stop")])
    assert found is not None
    assert found.action == "restore"
    assert strongest([]) is None


def test_the_best_step_is_told_by_the_judge_before_the_held_out_loss() -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0} for step in range(1, 5)]
    assert best_step(rows) is None
    rows[1]["eval_loss"], rows[3]["eval_loss"] = 0.5, 0.6
    assert best_step(rows) == 2
    rows[1]["judge/score"], rows[3]["judge/score"] = 0.1, 0.2
    assert best_step(rows) == 4
    rows[0]["start/judge/score"] = 0.2
    assert best_step(rows) == 0, "of equals the first"
    rows[3]["judge/score"] = None
    rows[0]["start/judge/score"] = 0.05
    assert best_step(rows) == 2, "what is not finite is not the best"


@pytest.mark.parametrize("word", ["off", False])
def test_one_word_switches_all_off_but_what_cannot_be_trained_with(word: Any) -> None:
    settings = GuardSettings.model_validate(word)
    actions = {name: settings.action(name) for name in GuardSettings.model_fields if name != "limits"}
    assert actions.pop("non_finite") == "stop"
    assert set(actions.values()) == {"off"}


def test_yaml_reads_a_bare_off_as_false() -> None:
    assert GuardSettings.model_validate({"entropy": False}).entropy == "off"
    with pytest.raises(RecipeError, match="'entropy'"):
        parse(GuardSettings, {"entropy": "louder"})
    with pytest.raises(RecipeError, match="did you mean 'entropy'"):
        parse(GuardSettings, {"entropie": "warn"})


def test_only_judged_runs_restore_by_default() -> None:
    assert GuardSettings().restoring(judged=True) == ("judge_falls",)
    assert GuardSettings().restoring(judged=False) == ()
    assert GuardSettings(overfit="restore").restoring(judged=False) == ("overfit",)
