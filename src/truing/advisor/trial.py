"""What a trial of the candidates said."""

from __future__ import annotations

from dataclasses import dataclass

from truing.advisor.decide import Decision


@dataclass(frozen=True, slots=True)
class Trial:
    """A measurement on the user's own data beside the rules."""

    candidates: tuple[str, ...]
    sentence: str
    overruled: Decision | None
    """The decision that the measurement puts in place of the rules'."""
