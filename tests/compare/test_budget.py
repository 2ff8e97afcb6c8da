"""Steps from budgets, counted on the very batches that are trained; and the words of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from truing.compare.budget import course, default_budget, nearest, one_pass, tokens_of
from truing.compare.request import Budget, Request, parse_rates
from truing.compare.work import Pace
from truing.core.errors import InputError
from truing.data.packing import StepPlan

PLAN = StepPlan((10, 20, 30, 40), 2, None, 4096, seed=0, shuffle=False, max_steps=None, epochs=1.0)


def test_the_steps_are_those_that_come_nearest() -> None:
    # Steps of two rows in order cost 30, 70, 30, 70: 30, 100, 130, 200 in all.
    assert [nearest(PLAN, tokens) for tokens in (1, 60, 70, 100, 129, 190)] == [
        (1, 30),
        (1, 30),
        (2, 100),
        (2, 100),
        (3, 130),
        (4, 200),
    ]
    assert tokens_of(PLAN, 3) == 130


def test_a_budget_of_tokens_may_take_several_passes() -> None:
    assert course("dpo", Budget("tokens", 1000), PLAN, None).steps == 20


def test_the_default_is_one_pass_over_the_least_data() -> None:
    small = StepPlan((5, 5), 2, None, 4096, seed=0, shuffle=False, max_steps=None, epochs=1.0)
    assert one_pass(small) == 10
    assert default_budget({"sft": PLAN, "dpo": small}, {}) == Budget("tokens", 10)
    # A method that writes its own completions: 2 steps of 3 tokens are one pass over its 4 prompts.
    assert default_budget({"sft": small, "ppo": PLAN}, {"ppo": Pace(3.0, 1.0)}) == Budget("tokens", 6)


def test_time_buys_what_a_measured_step_costs() -> None:
    found = course("kto", Budget("time", 60), PLAN, Pace(tokens=100.0, seconds=0.5))
    assert (found.steps, found.seconds, found.tokens) == (120, 60.0, 12_000.0)
    with pytest.raises(InputError, match="one step takes 90 s, which is more"):
        course("kto", Budget("time", 10), PLAN, Pace(100.0, 90.0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens=200k", ("tokens", 2e5)),
        ("time=5min", ("time", 300)),
        ("time=60s", ("time", 60)),
        ("steps=7", ("steps", 7)),
    ],
)
def test_budgets_are_read(text: str, expected: tuple[str, float]) -> None:
    found = Budget.parse(text)
    assert (found.unit, found.amount) == expected
    assert Budget.parse(found.written()) == found


@pytest.mark.parametrize("text", ["200k", "tokens=", "tokens=-3", "epochs=1", "time=3k", "steps=0", "steps=0.2"])
def test_a_budget_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        Budget.parse(text)


def test_rates_are_read_and_refused() -> None:
    assert parse_rates("dpo=1e-5, kto=2e-6") == {"dpo": 1e-5, "kto": 2e-6}
    for wrong in ("dpo", "dpo=fast", "dpo=0"):
        with pytest.raises(InputError, match="expected METHOD=RATE"):
            parse_rates(wrong)


def request(**changes: object) -> Request:
    values = {"recipes": (), "model": "m", "start": None, "methods": ("sft",), "data": ("d",), "output": Path("o")}
    return Request(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ()}, "nothing to compare"),
        ({"methods": ("dpo", "dpo")}, "names dpo twice"),
        ({"model": None}, "found neither"),
        ({"start": "run"}, "found both"),
        ({"data": ()}, "--data FILE"),
        ({"rates": {"dpo": 1.0}}, "--lr names dpo, which is not compared"),
        ({"recipes": ("a.yaml",)}, "--model does not go with recipes"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(changes: dict[str, object], said: str) -> None:
    request().check()
    with pytest.raises(InputError, match=said):
        request(**changes).check()
