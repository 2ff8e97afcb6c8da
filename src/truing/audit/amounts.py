"""How much there is, and how long it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from truing.audit.facts import DataFacts
from truing.audit.finding import Finding, Level
from truing.data.faults import counted

FEW, SOME = 200, 1000
"""Rows: 1,000 to 10,000 are the right order for a narrow change; below 200 a good prompt often does as well."""

REWARD = 2000
"""Comparisons that a reward model needs before it beats chance usefully (Gao et al., arXiv:2210.10760, figure 4)."""

BARS = 40
"""Of a histogram."""


def amount_finding(rows: int, purpose: str) -> Finding:
    """The check `amount`."""
    figures = {"rows": float(rows)}
    if rows < FEW:
        level: Level = "strong"
    elif rows < (REWARD if purpose == "reward" else SOME):
        level = "warn"
    else:
        return Finding("amount", "ok", f"{counted(rows, 'row')} to learn from", figures=figures)
    if purpose == "reward":
        told = f"{counted(rows, 'comparison')}; a reward model needs about {REWARD:,}"
    else:
        told = f"{counted(rows, 'row')}; {SOME:,} to 10,000 are the right order for a narrow change"
    return Finding(
        "amount",
        level,
        told,
        "collect more, good before many; or try a prompt with a few examples in it first",
        figures=figures,
    )


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many texts are how long."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """One fewer than edges."""


def lengths_finding(facts: DataFacts) -> Finding:
    """The check `lengths`, which never complains."""
    told = []
    figures: dict[str, float] = {"longest": facts.longest}
    for name, found in (("prompt", facts.prompt_length), ("completion", facts.completion_length)):
        if found.max:
            told.append(f"{name} {found.p50:,} / {found.p95:,} / {found.p99:,} / {found.max:,}")
            figures |= {f"{name}_{key}": value for key, value in asdict(found).items()}
    sentence = f"{facts.length_unit} (p50 / p95 / p99 / max): {'; '.join(told)}; longest row {facts.longest:,}"
    return Finding("lengths", "ok", sentence, figures=figures)


def histograms_of(lengths: npt.NDArray[np.int64]) -> tuple[Histogram, ...]:
    """Histograms of the lengths that are not 0; `lengths` is int64 [E, PARTS]."""
    found = []
    for name, values in (("prompts", lengths[:, 0]), ("completions", lengths[:, 1:])):
        filled = values[values > 0]
        if len(filled):
            counts, edges = np.histogram(filled, bins=min(BARS, int(filled.max())), range=(0, int(filled.max())))
            found.append(Histogram(name, tuple(edges.tolist()), tuple(counts.tolist())))
    return tuple(found)
