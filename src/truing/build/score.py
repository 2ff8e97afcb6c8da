"""`truing score`: what a reward model says of the answers in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truing.build.load_result import open_scorer
from truing.core.batch import Batch
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

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def score_file(
    run: Path, files: Sequence[str], max_length: int | None, output: Path | None, reporter: Reporter
) -> list[str]:
    """Score every answer of the files; write one JSON object an answer; return sentences about them.

    Rows are cut to `max_length` tokens, or to the length that the run was trained with.
    """
    opened = open_scorer(run)
    settings = DataSettings(path=tuple(files), max_length=max_length or _trained_length(run))
    kind = _kind(settings)
    dataset = load(
        settings,
        kind,
        opened.tokenizer,
        None,
        opened.loaded.end_tokens,
        lambda done, total: None,
        needed_by="truing score",
    )
    scored = list(score_trees(opened.model, dataset.train, reporter))
    if output is not None:
        lines = "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in scored)
        replace_file(output, lines)
    return [*(f"  {harmless(line)}" for line in dataset.report.lines()), *summary(scored)]


def score_trees(model: LanguageModel, trees: Sequence[Tree], reporter: Reporter) -> Iterator[Scored]:
    """Yield the scores of all completions of all trees, in order."""
    reporter.begin("score", len(trees))
    done = 0
    for rows in pack([tree.size for tree in trees], MICRO_TOKENS):
        chosen = [trees[row] for row in rows]
        scores = iter(batch_scores(model, model.collate(chosen)))
        for tree in chosen:
            for index, completion in enumerate(tree.completions):
                assert tree.origin is not None
                yield Scored(
                    tree.origin.file, tree.origin.row, _role(tree, index), next(scores), len(completion.tokens)
                )
        done += len(rows)
        reporter.advance(done)
    reporter.end()


def batch_scores(model: LanguageModel, batch: Batch) -> list[float]:
    """Scores of a batch's completions, without gradient."""
    with torch.no_grad():
        scores = model.outputs(batch).scores
    assert scores is not None
    return [float(score) for score in scores.tolist()]


def summary(scored: Sequence[Scored]) -> list[str]:
    """Mean and spread; for comparisons how often the chosen answer wins, and whether length is what wins."""
    values = np.array([row.score for row in scored])
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    lines = [f"{len(scored):,} answers: mean score {values.mean():.3f}, deviation {spread:.3f}"]
    pairs = [(a, b) for a, b in pairwise(scored) if (a.answer, b.answer) == ("chosen", "rejected")]
    return lines + agreement(pairs) if pairs else lines


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
