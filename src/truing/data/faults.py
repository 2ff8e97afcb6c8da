"""Rows that cannot be used: collected, then raised as one error or counted as dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from truing.core.errors import DataError
from truing.core.trees import Origin

SHOWN = 5
"""How many faults one error lists; the rest are counted."""


class RowError(DataError):
    """One row cannot be used; `reason` is the short class of the fault that a report counts under."""

    def __init__(self, origin: Origin, reason: str, detail: str) -> None:
        super().__init__(f"{origin}: {detail}")
        self.origin = origin
        self.reason = reason


@dataclass(slots=True)
class Faults:
    """The bad rows met so far, in order."""

    rows: list[RowError] = field(default_factory=list)

    def add(self, fault: RowError) -> None:
        self.rows.append(fault)

    def stop(self, remedy: str) -> None:
        """Raise one error that lists the first faults and says how many there are; nothing where there are none."""
        if not self.rows:
            return
        lines = [str(fault) for fault in self.rows[:SHOWN]]
        if len(self.rows) > SHOWN:
            lines.append(f"... and {len(self.rows) - SHOWN:,} more")
        if len(self.rows) > 1:
            lines.append(f"{len(self.rows):,} rows cannot be used")
        raise DataError("\n".join([*lines, remedy]))

    def by_reason(self) -> dict[str, tuple[Origin, ...]]:
        """The rows under each reason."""
        found: dict[str, list[Origin]] = {}
        for fault in self.rows:
            found.setdefault(fault.reason, []).append(fault.origin)
        return {reason: tuple(rows) for reason, rows in found.items()}


def rows_text(rows: Sequence[Origin]) -> str:
    """Name the first rows of many.

    >>> rows_text([Origin("a.json", n) for n in (1, 2, 3, 4, 5, 6, 7)])
    'a.json:1, a.json:2, a.json:3, a.json:4, a.json:5 and 2 more'
    """
    shown = ", ".join(str(row) for row in rows[:SHOWN])
    return shown if len(rows) <= SHOWN else f"{shown} and {len(rows) - SHOWN:,} more"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
