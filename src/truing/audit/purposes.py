"""Which kind of rows a purpose needs."""

from __future__ import annotations

from truing.core.errors import InputError, suggest
from truing.core.methods import KINDS, METHODS
from truing.core.trees import ExampleKind


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
