"""Whether data are sound: all checks over one reading of the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from truing.audit.facts import DataFacts
from truing.audit.finding import Finding
from truing.data.settings import FormatName

Verdict = Literal["ok", "warn", "stop"]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many of it are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings about some files, and the facts that they rest on."""

    files: tuple[str, ...]
    purpose: str
    """What the rows are to train: a kind of example, or the name of a method."""
    findings: tuple[Finding, ...]
    """In the order in which docs/data.md lists the checks; a check that does not apply has none."""
    facts: DataFacts
    verdict: Verdict
    """`stop` where any finding is one, `warn` where any warns."""

    def as_json(self) -> dict[str, object]:
        """The audit as JSON values; rows are grouped by file."""
        raise NotImplementedError


def audit(
    paths: Sequence[str],
    *,
    purpose: str | None = None,
    model: str | None = None,
    template: str | None = None,
    max_length: int = 1024,
    test: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    format: FormatName | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
) -> Audit:
    """Check files of data; whatever is wrong with them is a finding, not an error.

    Raises InputError where the arguments themselves are wrong: an unknown purpose, no such model or template.
    """
    raise NotImplementedError
