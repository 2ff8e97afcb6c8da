"""Which kind of rows a method learns from, known without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from truing.core.errors import InputError, suggest
from truing.core.trees import ExampleKind

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
"""Objectives by what they learn from; a test holds this to what they say of themselves, which takes torch to ask."""

KINDS: tuple[ExampleKind, ...] = get_args(ExampleKind)


def kind_for(purpose: str) -> ExampleKind:
    """The kind of rows that a purpose needs: a kind's own name, a method, or `FILE.py:CLASS`.

    Raises InputError for a name that is none of these.
    """
    for kind in KINDS:
        if purpose == kind or purpose in METHODS[kind]:
            return kind
    if ".py:" in purpose:
        from truing.objectives.registry import find

        return find(purpose).examples
    known = [*KINDS, *(name for names in METHODS.values() for name in names)]
    raise InputError(f"--for: there is no method or kind of rows '{purpose}'{suggest(purpose, known)}")
