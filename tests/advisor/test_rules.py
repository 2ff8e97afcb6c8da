from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.advisor.made import case
from truing.advisor.case import Case
from truing.advisor.decide import NOT_TRAINED, changes, decide, moved, questions, runner_up
from truing.advisor.evidence import evidence
from truing.advisor.rules import Condition, Rule, rules
from truing.advisor.write_recipe import RATES
from truing.core.errors import InputError
from truing.core.methods import METHODS
from truing.core.settings import parse

BOOK = rules()
EXAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"comparisons": 5000, "prompted": True}, "none"),
    ({"demonstrations": 20, "examples": 20}, "collect"),
    ({"demonstrations": 900, "examples": 900}, "sft"),
    ({"demonstrations": 900, "verifier": True}, "grpo"),
    ({"comparisons": 3000}, "dpo"),
    ({"comparisons": 3000, "longer_wins": 0.66}, "dpo_norm"),
    ({"comparisons": 3000, "noise": 0.15}, "ipo"),
    ({"comparisons": 3000, "noise": 0.45}, "relabel"),
    ({"comparisons": 3000, "chosen": "better"}, "apo_zero"),
    ({"comparisons": 3000, "chosen": "worse"}, "apo_down"),
    ({"comparisons": 3000, "one_stage": True}, "orpo"),
    ({"comparisons": 3000, "goal": "reasoning"}, "dpo"),
    ({"comparisons": 3000, "goal": "serving"}, "best_of_n"),
    ({"comparisons": 3000, "goal": "open", "judge": True}, "ppo"),
    ({"comparisons": 3000, "foreign": True, "judge": True}, "online_dpo"),
    ({"judgements": 3000, "classes": 2, "examples": 1500}, "kto"),
    ({"judgements": 3000, "classes": 2, "split_prompts": True}, "bco"),
    ({"judgements": 3000, "classes": 1, "examples": 3000}, "sft"),
    ({"judgements": 3000, "classes": 1, "examples": 0}, "collect"),
    ({"comparisons": 100, "demonstrations": 500}, "sft"),
    ({"comparisons": 100, "judgements": 4000, "classes": 2}, "kto"),
    ({"prompts": 500, "judge": True}, "rloo"),
    ({"prompts": 500}, "collect"),
]


@pytest.mark.parametrize(("known", "use"), EXAMPLES)
def test_each_situation_has_its_answer(known: dict[str, Any], use: str) -> None:
    assert decide(case(**known)).use == use


def test_reasoning_keeps_the_likelihood_of_what_was_chosen() -> None:
    assert decide(case(comparisons=3000, goal="reasoning")).objective["sft_weight"] == 0.2


def least(conditions: tuple[Condition, ...]) -> dict[str, Any]:
    """Values that just meet some conditions."""
    found: dict[str, Any] = {}
    for one in conditions:
        step = 1e-6 if BOOK.inputs[one.name].kind in ("share", "ratio") else 1
        if one.relation == "=" or one.relation in (">=", "<="):
            found[one.name] = one.value
        elif one.relation == ">":
            found[one.name] = float(one.value) + step
        else:
            found.setdefault(one.name, float(one.value) - step)
    return found


FOR: dict[str, dict[str, Any]] = {
    "sft": {"demonstrations": 900, "examples": 900},
    "dpo": {"comparisons": 3000},
    "kto": {"judgements": 3000, "classes": 2, "examples": 1500},
    "ppo": {"comparisons": 3000, "goal": "open", "judge": True},
    "best_of_n": {"comparisons": 3000, "goal": "serving"},
    "online_dpo": {"comparisons": 3000, "foreign": True, "judge": True},
    "grpo": {"verifier": True},
    "rloo": {"prompts": 500, "judge": True},
}
"""Situations in which each method is the answer."""


def reached(rule: Rule, group: str) -> bool:
    known = least(rule.conditions)
    if group == "method":
        return decide(case(**known)).method.id == rule.id
    for method in rule.applies_to or ("dpo",):
        none = {"lora_fits": False, "qlora_fits": False}
        fits = none if group == "adapter" and not known else {"lora_fits": False} if "qlora_fits" in known else {}
        found = decide(case(**{**FOR[method], **known, **fits}))
        decided = {"variant": (found.variant,), "adapter": (found.adapter,), "warnings": found.warnings}[group]
        if found.name != method or not any(one is not None and one.id == rule.id for one in decided):
            return False
    return True


@pytest.mark.parametrize(
    ("group", "rule"),
    [(group, rule) for group in ("method", "variant", "adapter", "warnings") for rule in getattr(BOOK, group)],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_every_rule_is_reached_by_a_case_that_just_meets_it(group: str, rule: Rule) -> None:
    assert reached(rule, group)


def test_no_two_rules_answer_one_case_differently() -> None:
    for group in (BOOK.method, BOOK.variant, BOOK.adapter):
        for one, other in itertools.combinations(group, 2):
            shared = set(one.applies_to) & set(other.applies_to) or one.applies_to == other.applies_to
            assert not (shared and set(one.conditions) == set(other.conditions)), (one.id, other.id)
        names = [rule.id for rule in group]
        assert len(names) == len(set(names))


def test_every_case_has_an_answer_in_every_group() -> None:
    for group in (BOOK.method, BOOK.adapter):
        assert not group[-1].when
    for method in {name for rule in BOOK.variant for name in rule.applies_to}:
        assert not [rule for rule in BOOK.variant if method in rule.applies_to][-1].when
    for empty in (Case(), Case(lora_fits=False, qlora_fits=False, full_fits=False)):
        assert decide(empty).name in NOT_TRAINED


def test_what_rules_name_is_there() -> None:
    known = {name for names in METHODS.values() for name in names}
    for rule in BOOK.everything():
        assert rule.source
        assert set(rule.evidence) <= evidence().keys()
        for advice in (rule.advise, rule.instead):
            use = advice.get("objective", {}).get("use")
            assert use is None or (use in known and use in RATES)
    for method in BOOK.method:
        assert method.answer
        assert method.because
    for one in BOOK.warnings:
        assert one.say
        assert one.applies_to
    for name, asked in BOOK.inputs.items():
        assert asked.options if asked.kind == "choice" else True
        assert asked.otherwise if asked.kind in ("fact", "question") else True, name


def test_a_condition_on_what_nobody_knows_does_not_hold() -> None:
    assert not Condition("noise", "<", 0.5).holds(Case())
    assert Condition("noise", "<", 0.5).holds(Case(noise=0.4))
    assert not Condition("verifier", "=", False).holds(Case())


@pytest.mark.parametrize("known", [known for known, _ in EXAMPLES])
def test_what_would_change_the_answer_does_change_it(known: dict[str, Any]) -> None:
    start = case(**known)
    now = decide(start)
    for change in changes(start):
        there = [
            decide(moved(start, change.input, value))
            for value in candidates(change.input, getattr(start, change.input))
        ]
        assert any((one.use, one.adapter) != (now.use, now.adapter) for one in there), change


def candidates(name: str, now: Any) -> list[Any]:
    known = BOOK.inputs[name]
    if known.kind == "choice":
        return list(known.options)
    if known.kind in ("fact", "question"):
        return [True, False]
    bounds = {float(one.value) for rule in BOOK.everything() for one in rule.conditions if one.name == name}
    return [bound + step for bound in bounds for step in (-1e-3, 0, 1e-3, -1, 1)]


def test_the_nearest_bound_is_told() -> None:
    told = {(one.input, one.use): one.sentence for one in changes(case(comparisons=300, examples=300, noise=0.0))}
    assert told["comparisons", "Do not train yet: there are too few good examples"] == "with only 49 comparisons"
    assert told["noise", "ipo"] == "with more than 5 % of the labels the wrong way round"
    assert told["verifier", "grpo"] == "if a program could check answers"


def test_only_questions_that_matter_are_asked() -> None:
    assert "split_prompts" in questions(case(judgements=500, classes=2))
    assert "split_prompts" not in questions(case(comparisons=500))
    assert "prompted" not in questions(case(comparisons=500, prompted=False))
    assert set(questions(case(prompted=True))) <= set(questions(case())) | {"prompted"}


def test_the_second_choice_is_another_answer() -> None:
    for known, use in EXAMPLES:
        second = runner_up(case(**known))
        if use in NOT_TRAINED:
            assert second is None
        elif second is not None:
            assert (second.use, second.objective) != (use, decide(case(**known)).objective)
            assert second.trains


def test_memory_decides_what_is_trained() -> None:
    pairs = {"comparisons": 3000}
    assert decide(case(**pairs)).lora
    assert not decide(case(**pairs, parameters=1_000_000, full_fits=True)).lora
    assert decide(case(**pairs, parameters=1_000_000, full_fits=True, tasks=True)).lora
    packed = decide(case(**pairs, lora_fits=False))
    assert (packed.weights, packed.lora, packed.trains) == ("qlora", True, True)
    assert not decide(case(**pairs, lora_fits=False, qlora_fits=False)).trains


def test_a_rule_that_asks_for_an_unknown_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"rule x asks for 'comparison', which no case has; did you mean"):
        parse(Rule, {"id": "x", "when": {"comparison": ">= 3"}, "source": ["y"]}, error=InputError)
