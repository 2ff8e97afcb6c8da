"""`truing score`: what a reward model says of the answers in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.build.load_result import check_members, open_scorer, template_of
from truing.core.batch import Batch
from truing.core.ensemble import ensemble_score
from truing.core.errors import DataError
from truing.core.text import harmless
from truing.core.trees import ExampleKind, Tree
from truing.data.dataset import load
from truing.data.formats import detect
from truing.data.packing import pack
from truing.data.records import read, rename_columns
from truing.data.settings import DataSettings
from truing.models.language_model import LanguageModel
from truing.recipe.load import load_recipe
from truing.training.progress import Reporter
from truing.training.run_directory import replace_file

MICRO_TOKENS = 4096
LIKE = 0.1
"""Relative difference up to which two lengths count as equal."""
Z = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer's score, and where it came from."""

    file: str
    row: int
    answer: str
    """`chosen`, `rejected` or `completion`."""
    score: float
    tokens: int
    members: tuple[float, ...] = ()
    """The scores of an ensemble's members, in the order they were given; empty for a single reward model."""

    def as_json(self) -> dict[str, Any]:
        written = {name: getattr(self, name) for name in self.__slots__}
        return written if self.members else {name: value for name, value in written.items() if name != "members"}


def score_file(
    runs: Sequence[Path],
    files: Sequence[str],
    max_length: int | None,
    output: Path | None,
    reporter: Reporter,
    *,
    deviations: float = 1.0,
) -> list[str]:
    """Score every answer of the files; write one JSON object an answer; return sentences about them.

    Several runs are an ensemble: the score is their mean less so many of their standard deviations. They are in memory
    one at a time. Rows are cut to `max_length` tokens, or to the shortest length that a run was trained with.
    """
    check_members(runs)
    opened = open_scorer(runs[0])
    settings = DataSettings(path=tuple(files), max_length=max_length or min(_trained_length(run) for run in runs))
    dataset = load(
        settings,
        _kind(settings),
        opened.tokenizer,
        template_of(runs[0]),
        opened.loaded.end_tokens,
        lambda done, total: None,
        needed_by="truing score",
    )
    trees = dataset.train
    members = [tree_scores(opened.model, trees, reporter)]
    del opened  # a member makes room for the next
    members += [tree_scores(open_scorer(run).model, trees, reporter) for run in runs[1:]]
    scores = torch.tensor(members, dtype=torch.float64)
    scored = _scored(trees, scores, ensemble_score(scores, deviations))
    if output is not None:
        lines = "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in scored)
        replace_file(output, lines)
    return [
        *(f"  {harmless(line)}" for line in dataset.report.lines()),
        *([] if len(runs) == 1 else describe_members([str(run) for run in runs], scored)),
        *summary(scored),
    ]


def tree_scores(model: LanguageModel, trees: Sequence[Tree], reporter: Reporter) -> list[float]:
    """Scores of all completions of all trees, in the order of the trees."""
    reporter.begin("score", len(trees))
    found: list[list[float]] = [[] for _ in trees]
    done = 0
    for rows in pack([tree.size for tree in trees], MICRO_TOKENS):
        scores = iter(batch_scores(model, model.collate([trees[row] for row in rows])))
        for row in rows:
            found[row] = [next(scores) for _ in trees[row].completions]
        done += len(rows)
        reporter.advance(done)
    reporter.end()
    return [score for scores_of_tree in found for score in scores_of_tree]


def _scored(trees: Sequence[Tree], members: Tensor, together: Tensor) -> list[Scored]:
    """The answers of the trees with their scores: float64 [M, C] of each member, float64 [C] of all."""
    answers = ((tree, index, part) for tree in trees for index, part in enumerate(tree.completions))
    rows = []
    for (tree, index, part), score, own in zip(answers, together.tolist(), members.T.tolist(), strict=True):
        assert tree.origin is not None
        name = _role(tree, index)
        kept = tuple(own) if len(own) > 1 else ()
        rows.append(Scored(tree.origin.file, tree.origin.row, name, score, len(part.tokens), kept))
    return rows


def batch_scores(model: LanguageModel, batch: Batch) -> list[float]:
    """Scores of a batch's completions, without gradient."""
    with torch.no_grad():
        scores = model.outputs(batch).scores
    assert scores is not None
    return [float(score) for score in scores.tolist()]


def summary(scored: Sequence[Scored]) -> list[str]:
    """Mean and spread; for comparisons how often the chosen answer wins, and whether length is what wins."""
    values = np.array([row.score for row in scored])
    lines = [f"{len(scored):,} answers: mean score {values.mean():.3f}, deviation {_spread(values):.3f}"]
    pairs = [(scored[i], scored[i + 1]) for i in _pairs(scored)]
    return lines + agreement(pairs) if pairs else lines


def describe_members(names: Sequence[str], scored: Sequence[Scored]) -> list[str]:
    """A line for each member of an ensemble, and how far they lie apart on the same answer."""
    scores = np.array([row.members for row in scored])  # float64 [C, M]
    lines = []
    for name, own in zip(names, scores.T, strict=True):
        line = f"{name}: mean score {own.mean():.3f}, deviation {_spread(own):.3f}"
        pairs = [(own[i], own[i + 1]) for i in _pairs(scored)]
        lines.append(f"{line}, chosen above rejected in {_wins(np.array(pairs)).mean():.1%}" if pairs else line)
    lines.append(f"the members differ by a deviation of {scores.std(axis=1).mean():.3f} on the same answer")
    if float(np.ptp(scores.mean(axis=0))) > float(np.mean([_spread(own) for own in scores.T])):
        lines.append(
            "  their means lie further apart than their scores spread, so the lowest member decides alone; rewards are "
            "known up to a constant, which objective: {use: reward, centering: 0.01} takes out when training"
        )
    return lines


def agreement(pairs: Sequence[tuple[Scored, Scored]]) -> list[str]:
    """What a reward model's verdicts on (chosen, rejected) are worth beside knowing the lengths alone."""
    scores = np.array([[a.score, b.score] for a, b in pairs])
    sizes = np.array([[a.tokens, b.tokens] for a, b in pairs], dtype=np.float64)
    wins = _wins(scores)
    alike = np.abs(sizes[:, 0] - sizes[:, 1]) <= LIKE * sizes.max(axis=1)
    lines = [
        f"chosen above rejected in {_share(wins)}",
        f"the longer answer is the chosen one in {_share(_wins(sizes))}",
    ]
    if alike.any():
        lines.append(f"among pairs of about equal length (within {LIKE:.0%}): {_share(wins[alike])}")
    if scores.std() > 0 and sizes.std() > 0:
        lines.append(f"correlation of score and length: {np.corrcoef(scores.ravel(), sizes.ravel())[0, 1]:+.2f}")
    gap = calibration_error(np.abs(scores[:, 0] - scores[:, 1]), wins)
    lines.append(f"calibration: σ(difference) is off by {gap:.1%} on average")
    return lines


def calibration_error(differences: np.ndarray, wins: np.ndarray) -> float:
    """Expected calibration error of σ(|difference|) over ten bins of equally many pairs: float [P], [P] → share."""
    order = np.argsort(differences, kind="stable")
    confidence = 1 / (1 + np.exp(-differences))
    bins = [chunk for chunk in np.array_split(order, min(10, len(order))) if len(chunk)]
    return float(sum(len(c) * abs(confidence[c].mean() - wins[c].mean()) for c in bins) / len(order))


def _pairs(scored: Sequence[Scored]) -> list[int]:
    """Where a chosen answer is followed by its rejected one."""
    return [i for i, (a, b) in enumerate(pairwise(scored)) if (a.answer, b.answer) == ("chosen", "rejected")]


def _spread(values: np.ndarray) -> float:
    """Standard deviation of a sample; 0 of a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _share(wins: np.ndarray) -> str:
    low, high = wilson(float(wins.sum()), len(wins))
    return f"{wins.mean():.1%} of {len(wins):,} pairs (95 % interval {low:.1%} to {high:.1%})"


def _wins(sides: np.ndarray) -> np.ndarray:
    """1 where the first of two is larger, a half where they are equal: float [P, 2] → [P]."""
    return np.asarray((sides[:, 0] > sides[:, 1]) + 0.5 * (sides[:, 0] == sides[:, 1]))


def wilson(wins: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927)."""
    share = wins / count
    centre = share + Z**2 / (2 * count)
    half = Z * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return (centre - half) / (1 + Z**2 / count), (centre + half) / (1 + Z**2 / count)


def _role(tree: Tree, index: int) -> str:
    if not tree.pairs:
        return "completion"
    return "chosen" if index == tree.pairs[0][0] else "rejected"


def _trained_length(run: Path) -> int:
    recipe = run / "recipe.yaml"
    if recipe.is_file():
        return load_recipe(recipe).stages[-1].data.max_length
    return int(DataSettings.model_fields["max_length"].default)


def _kind(settings: DataSettings) -> ExampleKind:
    """Comparisons stay pairs; of anything else the answer is scored."""
    kinds = {detect(rename_columns(read(path), settings.columns)).format.kind for path in settings.paths}
    if "prompt" in kinds:
        raise DataError("these rows have prompts alone, and no answers to score")
    return "comparison" if kinds == {"comparison"} else "judgement" if kinds == {"judgement"} else "demonstration"
