"""What memory and time need to know of each method, without importing one: losses are torch, a plan is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truing.core.errors import RecipeError, suggest
from truing.core.methods import METHODS as KNOWN
from truing.core.trees import ExampleKind


@dataclass(frozen=True, slots=True)
class Method:
    """Who computes what in a step."""

    examples: ExampleKind
    reference: bool = True
    """Whether log-probs of the frozen start are needed."""
    scores: bool = False
    """Whether the model is a reward model, read at the end of each completion."""
    mismatched: bool = False
    """Whether another prompt's answer is computed beside each, ahead of the gradient."""
    ahead: bool = False
    """Whether the policy computes a step once without gradient first."""
    group: int = 1
    """Completions of a prompt in a rollout."""
    epochs: int = 1
    """Passes over a rollout."""
    critic: bool = False
    moving: bool = False
    """Whether the reference follows the policy, so that it is an adapter of its own."""

    @property
    def rollouts(self) -> bool:
        """Whether it learns from completions of its own."""
        return self.examples == "prompt"


_OWN: Mapping[str, Mapping[str, Any]] = {
    "sft": {"reference": False},
    "reward": {"reference": False, "scores": True},
    "aot": {"ahead": True},
    "aot_unpaired": {"ahead": True},
    "cpo": {"reference": False},
    "orpo": {"reference": False},
    "simpo": {"reference": False},
    "tr_dpo": {"moving": True},
    "kto": {"mismatched": True, "ahead": True},
    "ppo": {"epochs": 4, "critic": True},
    "grpo": {"group": 8},
    "best_of_n": {"group": 4},
    "reinforce": {"group": 4},
    "rloo": {"group": 4},
    "online_dpo": {"group": 2},
}
"""What sets a method apart from the plainest that learns from the same rows."""

METHODS = {name: Method(kind, **_OWN.get(name, {})) for kind, names in KNOWN.items() for name in names}
"""By the word after `use:`."""


def find_method(name: str) -> Method:
    """Return what is known of a method; a loss of the user's own is planned like DPO, the most it can be."""
    if ".py:" in name:
        return METHODS["dpo"]
    if name not in METHODS:
        raise RecipeError(f"method: there is no '{name}'{suggest(name, METHODS)}")
    return METHODS[name]
