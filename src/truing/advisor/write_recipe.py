"""From a decision to a recipe that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from truing.advisor.case import Case
from truing.advisor.decide import Decision
from truing.advisor.ground import Ground
from truing.core.errors import InputError
from truing.core.trees import ExampleKind

RATES: Mapping[str, float] = {
    "sft": 2e-5,
    "reward": 1e-5,
    "dpo": 5e-7,
    "ipo": 5e-7,
    "cdpo": 5e-7,
    "dpo_norm": 5e-7,
    "simpo": 5e-7,
    "apo_zero": 5e-7,
    "apo_down": 5e-7,
    "orpo": 5e-6,
    "kto": 5e-7,
    "bco": 5e-7,
    "ppo": 3e-6,
    "grpo": 1e-6,
    "rloo": 1e-6,
    "online_dpo": 5e-7,
}
"""Peak rates for all weights; the pages of the methods have their sources."""

LORA_RATE = 10.0
"""How much higher LoRA's rate is (Schulman et al. 2025, "LoRA Without Regret")."""
TUNED_RATE = 0.5
"""Of a model that is tuned already."""
TINY_RATE, TINY = 20.0, 50_000_000
"""Of a model with fewer parameters; the warning in rules.yaml says so."""

ADAPTERS: Mapping[str, Any] = {
    "lora": {"use": "lora", "rank": 16},
    "qlora": {"use": "lora", "rank": 16, "base": "nf4"},
    "none": "none",
}
"""The recipe's adapter for what the rules advise."""

STEPS = 40
"""Optimizer steps that a stage should have at least, as long as a batch has `LEAST_BATCH` rows."""
LEAST_BATCH, MOST_BATCH = 8, 64
HOLDOUT = 0.1

SERVED: Mapping[str, tuple[ExampleKind, ...]] = {
    "sft": ("demonstration",),
    "preferences": ("comparison",),
    "judgements": ("judgement",),
    "prompts": ("prompt", "demonstration", "comparison", "judgement"),
}
BY_ROLLOUTS = ("ppo", "grpo", "rloo", "online_dpo")
JUDGED = ("kto", "bco")

HEADER = "# Written by `truing advise`"


def recipe_for(decision: Decision, case: Case, ground: Ground) -> dict[str, Any]:
    """Return the values of a recipe: a chain where the base has to learn to answer first.

    Raises InputError where something that only a person has is missing: a program or a judge to score new answers.
    """
    stages = [*_before(decision, case, ground), _last(decision, case, ground)]
    top: dict[str, Any] = {"model": ground.model}
    if ground.template is not None:
        top["template"] = ground.template
    top["adapter"] = ADAPTERS[decision.weights]
    return {**top, **stages[0]} if len(stages) == 1 else {**top, "stages": stages}


def to_yaml(values: Mapping[str, Any], comments: tuple[str, ...]) -> str:
    """The recipe as a person reads it, with what it is about on top."""
    lines = [f"{HEADER}: {comments[0]}", *(f"# {comment}" for comment in comments[1:])]
    return "\n".join([*lines, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)])


def _before(decision: Decision, case: Case, ground: Ground) -> list[dict[str, Any]]:
    """Stages before the one that was decided on."""
    stages = []
    if not case.tuned and decision.use not in ("sft", "orpo", "best_of_n"):
        kinds = SERVED["sft"] if ground.paths(SERVED["sft"]) else _answers(ground)
        if ground.paths(kinds):
            stages.append(_stage("sft", {"use": "sft"}, kinds, decision, case, ground))
    if decision.use == "ppo":
        stages.append(_stage("reward", {"use": "reward"}, SERVED["preferences"], decision, case, ground))
    return stages


def _answers(ground: Ground) -> tuple[ExampleKind, ...]:
    """Kinds of rows whose good answers show how to answer where there are no demonstrations."""
    return SERVED["preferences"] if ground.paths(SERVED["preferences"]) else SERVED["judgements"]


def _last(decision: Decision, case: Case, ground: Ground) -> dict[str, Any]:
    use = decision.use
    if use == "best_of_n":
        return _stage("reward", {"use": "reward"}, SERVED["preferences"], decision, case, ground)
    if use in BY_ROLLOUTS:
        return _rollouts(decision, case, ground)
    if use in JUDGED:
        return _stage(use, decision.objective, SERVED["judgements"], decision, case, ground)
    if use == "sft":
        kinds = SERVED["sft"] if ground.paths(SERVED["sft"]) else _answers(ground)
        return _stage(use, decision.objective, kinds, decision, case, ground)
    return _stage(use, decision.objective, SERVED["preferences"], decision, case, ground)


def _rollouts(decision: Decision, case: Case, ground: Ground) -> dict[str, Any]:
    use = decision.use
    if use != "ppo" and not ground.rewards:
        raise InputError(
            f"{use} learns from answers of its own, which something has to score: give --verifier FILE.py:FN for a "
            "program that checks them, or --judge RUN for a reward model"
        )
    stage = _stage(use, decision.objective, SERVED["prompts"], decision, case, ground)
    written = max(16, min(ground.answer_tokens, ground.max_length // 2))
    stage["data"]["max_length"] = ground.max_length - written
    stage["data"].pop("holdout")
    stage["rollout"] = {"max_new_tokens": written}
    if ground.rewards and use != "ppo":
        stage["rollout"]["rewards"] = list(ground.rewards)
    stage["samples"] = {"temperature": 1.0}
    return stage


def _stage(
    name: str,
    objective: Mapping[str, Any],
    kinds: tuple[ExampleKind, ...],
    decision: Decision,
    case: Case,
    ground: Ground,
) -> dict[str, Any]:
    rows, paths = ground.rows(kinds), ground.paths(kinds)
    passes = 3 if rows < 1_000 else 2 if rows < 5_000 else 1
    batch = max(LEAST_BATCH, min(MOST_BATCH, 2 ** (rows * passes // STEPS).bit_length() // 2))
    return {
        "name": name,
        "objective": dict(objective),
        "data": {"path": paths[0] if len(paths) == 1 else paths, "max_length": ground.max_length, "holdout": HOLDOUT},
        "batch": {"examples": batch},
        "optim": {"lr": rate_of(str(objective["use"]), decision, case), "epochs": passes},
    }


def rate_of(use: str, decision: Decision, case: Case) -> float:
    """The peak learning rate of a method."""
    rate = RATES[use] * (LORA_RATE if decision.lora else 1.0) * (TUNED_RATE if case.tuned else 1.0)
    if case.parameters is not None and case.parameters < TINY:
        rate *= TINY_RATE
    return float(f"{rate:.3g}")
