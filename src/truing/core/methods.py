"""The objectives by what they learn from, known without importing one: losses need torch, a plan does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from truing.core.trees import ExampleKind

KINDS: tuple[ExampleKind, ...] = get_args(ExampleKind)

METHODS: Mapping[ExampleKind, tuple[str, ...]] = {
    "demonstration": ("sft",),
    "comparison": (
        *("aot", "aot_unpaired", "apo_down", "apo_zero", "bco_pair", "cdpo", "cpo", "discopop", "dpo", "dpo_norm"),
        *("exo", "f_dpo", "hinge", "ipo", "ld_dpo", "mpo", "nca", "orpo", "reward", "robust", "simpo", "sppo"),
        *("tr_dpo", "wpo"),
    ),
    "judgement": ("bco", "kto"),
    "prompt": ("best_of_n", "grpo", "online_dpo", "ppo", "reinforce", "rloo"),
}
"""A test holds this to what the objectives say of themselves, which takes torch to ask."""
