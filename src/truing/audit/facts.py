"""What the data are, in numbers: the ground that advice stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from truing.core.interval import Interval
from truing.data.report import Lengths


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Counts, shares and lengths; None where a figure does not apply to these rows or could not be measured."""

    rows: int
    """That can be used."""
    prompts: int
    """Distinct ones."""
    demonstrations: int
    comparisons: int
    judgements: int
    bare_prompts: int
    """Rows by what they are themselves, whatever they are to train."""
    desirable: int
    undesirable: int
    """Judgements of either kind."""
    scored: bool
    """Whether comparisons say by how much."""
    longer_wins: Interval | None
    """Share of comparisons whose chosen answer is the longer one; those of equal length are left out."""
    length_ratio: float | None
    """Mean length of the chosen answers over that of the rejected ones."""
    shortcut: Interval | None
    """Share of held-out comparisons that a bag of words decides rightly."""
    noise: Interval | None
    """Estimated share of labels that are the wrong way round."""
    contradictions: float
    duplicates: float
    near_duplicates: float
    """Shares of the rows, 0 to 1."""
    prompt_length: Lengths
    completion_length: Lengths
    length_unit: Literal["tokens", "words"]
    """Tokens where a model was given."""
    multi_turn: float
    """Share of the rows whose prompt holds an earlier answer, or whose answer holds a later user turn."""
    longest: int
    """Length of the longest prompt with one answer, before anything is cut."""
