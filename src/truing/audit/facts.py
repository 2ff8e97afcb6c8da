"""What the data are, in numbers: the ground that advice stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from truing.audit.finding import Finding
from truing.audit.material import Material
from truing.audit.reading import Reading
from truing.core.interval import Interval
from truing.data.examples import Demonstration, Example, Judgement, Messages, Words
from truing.data.report import Lengths

Unit = Literal["tokens", "words"]


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
    length_unit: Unit
    """Tokens where a model was given."""
    multi_turn: float
    """Share of the rows whose prompt holds an earlier answer, or whose answer holds a later user turn."""
    longest: int
    """Length of the longest prompt with one answer, before anything is cut."""


def facts_of(
    material: Material, reading: Reading, findings: Sequence[Finding], lengths: npt.NDArray[np.int64], unit: Unit
) -> DataFacts:
    """Collect what checks measured; `lengths` is int64 [E, PARTS] in `unit`."""
    examples = material.examples
    figures = {finding.check: finding.figures for finding in findings}
    judged = [example.label for example in examples if isinstance(example, Judgement)]
    answers = lengths[:, 1:]
    return DataFacts(
        rows=len({example.origin for example in examples}),
        prompts=len(set(material.prompts.tolist())),
        demonstrations=reading.kinds["demonstration"],
        comparisons=reading.kinds["comparison"],
        judgements=reading.kinds["judgement"],
        bare_prompts=reading.kinds["prompt"],
        desirable=sum(judged),
        undesirable=len(judged) - sum(judged),
        scored="margin" in figures,
        longer_wins=_interval(figures.get("length_bias", {})),
        length_ratio=figures.get("length_bias", {}).get("ratio"),
        shortcut=_interval(figures.get("shortcut", {})),
        noise=_interval(figures.get("noise", {})),
        contradictions=figures.get("contradictions", {}).get("share", 0.0),
        duplicates=figures.get("duplicates", {}).get("share", 0.0),
        near_duplicates=figures.get("near_duplicates", {}).get("share", 0.0),
        prompt_length=Lengths.of(lengths[:, 0]),
        completion_length=Lengths.of(answers[answers > 0]),
        length_unit=unit,
        multi_turn=sum(map(_has_turns, examples)) / max(1, len(examples)),
        longest=int((lengths[:, 0] + answers.max(axis=1)).max(initial=0)),
    )


def _interval(figures: Mapping[str, float]) -> Interval | None:
    return Interval(figures["share"], figures["low"], figures["high"]) if "low" in figures else None


def _has_turns(example: Example) -> bool:
    completion: Words = example.completion if isinstance(example, Demonstration) else ""
    return any(turn.role == "assistant" for turn in _turns(example.prompt)) or any(
        turn.role == "user" for turn in _turns(completion)
    )


def _turns(words: Words) -> Messages:
    return () if isinstance(words, str) else words
