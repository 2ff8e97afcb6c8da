"""What memory and time need to know of each method, without importing one: losses are torch, a plan is not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from truing.core.errors import RecipeError, suggest
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


_PAIRS = Method("comparison")
_ANSWERS = Method("judgement")
_PROMPTS = Method("prompt")

METHODS = {
    "sft": Method("demonstration", reference=False),
    "reward": Method("comparison", reference=False, scores=True),
    **dict.fromkeys(("apo_down", "apo_zero", "bco_pair", "cdpo", "discopop", "dpo", "dpo_norm", "exo"), _PAIRS),
    **dict.fromkeys(("f_dpo", "hinge", "ipo", "ld_dpo", "mpo", "nca", "robust", "sppo", "wpo"), _PAIRS),
    **dict.fromkeys(("aot", "aot_unpaired"), replace(_PAIRS, ahead=True)),
    **dict.fromkeys(("cpo", "orpo", "simpo"), replace(_PAIRS, reference=False)),
    "tr_dpo": replace(_PAIRS, moving=True),
    "bco": _ANSWERS,
    "kto": replace(_ANSWERS, mismatched=True, ahead=True),
    "ppo": replace(_PROMPTS, epochs=4, critic=True),
    "grpo": replace(_PROMPTS, group=8),
    **dict.fromkeys(("best_of_n", "reinforce", "rloo"), replace(_PROMPTS, group=4)),
    "online_dpo": replace(_PROMPTS, group=2),
}
"""By the word after `use:`."""


def find_method(name: str) -> Method:
    """Return what is known of a method; a loss of the user's own is planned like DPO, the most it can be."""
    if ".py:" in name:
        return _PAIRS
    if name not in METHODS:
        raise RecipeError(f"method: there is no '{name}'{suggest(name, METHODS)}")
    return METHODS[name]
