"""What a decision rests on: counts and shares of the data, what the machine holds, and what only a person knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Goal = Literal["narrow", "open", "reasoning", "serving"]
Chosen = Literal["alike", "better", "worse"]


@dataclass(frozen=True, slots=True)
class Case:
    """One situation. None where something is not known: no rule counts on it then."""

    demonstrations: int = 0
    comparisons: int = 0
    judgements: int = 0
    prompts: int = 0
    """Rows of each kind, by what they are themselves."""
    examples: int = 0
    """Good answers of any kind: demonstrations, chosen and desirable ones."""
    classes: int | None = None
    """Kinds of label among the judgements: 1 or 2."""
    imbalance: float | None = None
    """Judgements of the common kind for each of the rare one."""
    longer_wins: float | None = None
    shortcut: float | None = None
    noise: float | None = None
    """Shares, 0 to 1."""
    duplicates: float = 0.0
    """Share of the rows that repeat another one."""
    cut: bool = False
    """Whether more than one row in twenty is longer than the model has positions for."""
    parameters: int | None = None
    full_fits: bool = True
    lora_fits: bool = True
    qlora_fits: bool = True
    """Whether SFT with all weights, with LoRA, or with LoRA over a 4-bit base, fits into the memory there is."""
    tuned: bool | None = None
    """Whether the model already follows instructions."""
    goal: Goal | None = None
    prompted: bool | None = None
    verifier: bool | None = None
    judge: bool | None = None
    foreign: bool | None = None
    chosen: Chosen | None = None
    one_stage: bool | None = None
    split_prompts: bool | None = None
    tasks: bool | None = None
    """Answers to the questions that rules.yaml asks; None where nobody answered."""

    def knowing(self, name: str, value: Any) -> Case:
        """The same with one field another."""
        return replace(self, **{name: value})
