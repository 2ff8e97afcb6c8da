"""How much likelier a prompt is among those of desirable answers than of undesirable ones: p(x | D⁺) / p(x | D⁻).

A logistic regression on what the frozen start of a stage makes of a prompt, with both classes weighted alike, has this
ratio as its odds (arXiv:2404.04656v1, underlying distribution matching). The published code takes the odds of the very
prompts it fits, with a fixed penalty; with as many features as prompts these are of no use, for any two sets of prompts
can then be told apart. Here the odds of a prompt come from a regression that has not seen it, and the penalty is the
one that predicts prompts left out best: where the two kinds of prompts are alike, the ratios are close to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from truing.core.batch import Batch
from truing.core.errors import DataError
from truing.objectives.bco import DENSITY_RATIO
from truing.training.reference import LogprobStore

FOLDS = 5
"""Parts that the prompts are dealt into; a regression for each is fitted to the others."""

PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""λ of λ/2 |w|² for inputs of mean square length 1, from the heaviest on, under which no ratio is far from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Prompts, each once, and how many desirable and undesirable answers each has."""

    features: Tensor  # float64 [N, d], on the CPU
    desirable: Tensor  # float64 [N]
    undesirable: Tensor  # float64 [N]

    def at(self, rows: Tensor) -> Prompts:
        """Some of the prompts: bool or int64 [M]."""
        return Prompts(self.features[rows], self.desirable[rows], self.undesirable[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """A logistic regression on standardised features, divided by √d so that λ means the same for any d."""

    mean: Tensor  # float64 [d]
    scale: Tensor  # float64 [d], √d times the deviation
    weight: Tensor = field(repr=False)  # float64 [d]
    bias: Tensor  # float64 scalar

    def log_ratio(self, features: Tensor) -> Tensor:
        """Log p(x | D⁺) − log p(x | D⁻): float [N, d] → float64 [N]."""
        return ((features.double() - self.mean) / self.scale) @ self.weight + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The regression on all prompts, and what the folds' regressions say of prompts they have not seen."""

    whole: Regression
    """For prompts that were not fitted."""
    log_ratio: Tensor  # float64 [N], of the fitted prompts, each by a regression without it
    penalty: float
    auc: float
    """How often a desirable answer's prompt has the higher ratio than an undesirable one's, among prompts left out."""


def fit(prompts: Prompts, penalty: float, start: Regression | None = None) -> Regression:
    """Minimise ½ (mean softplus(−z) over desirable + mean softplus(z) over undesirable answers) + λ/2 |w|².

    The two means give the classes equal weight whatever their sizes; the bias is free of the penalty. Deterministic:
    L-BFGS in float64 on the CPU, begun at zero or at `start`.
    """
    mean = prompts.features.mean(dim=0) if start is None else start.mean
    scale = _scale(prompts.features) if start is None else start.scale
    inputs = (prompts.features - mean) / scale
    good = prompts.desirable / prompts.desirable.sum()
    bad = prompts.undesirable / prompts.undesirable.sum()
    weight = inputs.new_zeros(inputs.shape[1]) if start is None else start.weight.clone()
    bias = inputs.new_zeros(()) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(True), bias.requires_grad_(True)]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = inputs @ weight + bias
        value = 0.5 * (good @ F.softplus(-z) + bad @ F.softplus(z)) + 0.5 * penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Regression(mean, scale, weight.detach(), bias.detach())


def cross_fit(prompts: Prompts) -> Fitted:
    """Fit with the penalty that is best on prompts left out. Raises DataError with too few prompts of either kind."""
    folds = _folds(prompts)
    starts: list[Regression | None] = [None] * FOLDS
    best: tuple[float, Tensor, float] | None = None
    for penalty in PENALTIES:
        left_out = torch.zeros(len(folds), dtype=torch.float64)
        for fold in range(FOLDS):
            regression = fit(prompts.at(folds != fold), penalty, starts[fold])
            starts[fold] = regression
            left_out[folds == fold] = regression.log_ratio(prompts.features[folds == fold])
        cost = _cost(left_out, prompts)
        if best is not None and cost > best[0]:
            break  # the cost falls, then rises, as the penalty gets lighter
        best = (cost, left_out, penalty)
    assert best is not None
    _, left_out, penalty = best
    return Fitted(fit(prompts, penalty), left_out, penalty, auc(left_out, prompts, folds))


def auc(log_ratio: Tensor, prompts: Prompts, folds: Tensor) -> float:
    """Area under the ROC curve, ties counting half: float64 [N] → [0, 1].

    Only answers of one fold, int64 [N], are compared: across folds the regressions differ, and a fold that has more
    than its share of a kind has been judged by one that saw less of it, which pulls the figure below a half.
    """
    wins = pairs = 0.0
    for fold in sorted(set(folds.tolist())):
        own = folds == fold
        won, compared = _wins(log_ratio[own], prompts.at(own))
        wins, pairs = wins + won, pairs + compared
    return wins / pairs


def _wins(log_ratio: Tensor, prompts: Prompts) -> tuple[float, float]:
    """How many pairs of a desirable and an undesirable answer are in order, and how many there are."""
    values, place = torch.unique(log_ratio, return_inverse=True)  # sorted
    good = torch.zeros(len(values), dtype=torch.float64).index_add(0, place, prompts.desirable)
    bad = torch.zeros(len(values), dtype=torch.float64).index_add(0, place, prompts.undesirable)
    below = bad.cumsum(0) - bad / 2
    return float(good @ below), float(good.sum() * bad.sum())


class DensityRatios:
    """Fills the column `density_ratio`, float32 [C]: a prompt's ratio where the answer is undesirable, else 1."""

    def __init__(self, store: LogprobStore) -> None:
        self._store = store

    def __call__(self, batch: Batch) -> Batch:
        by_tree = torch.from_numpy(self._store.get(batch.digests)).to(batch.tokens.device)
        ratios = by_tree[batch.completion_tree]
        return batch.with_columns(**{DENSITY_RATIO: torch.where(batch.labels == 0, ratios, torch.ones_like(ratios))})


def keep_ratios(store: LogprobStore, digests: Sequence[str], log_ratio: Tensor) -> None:
    """Keep one number a tree: float64 [len(digests)]."""
    # e^±80 is far outside any bounds, and still a float32.
    ratios = log_ratio.clamp(-80, 80).exp().to(torch.float32).numpy()
    for digest, ratio in zip(digests, ratios, strict=True):
        store.put(digest, np.array([ratio], dtype=np.float32))


def _scale(features: Tensor) -> Tensor:
    """√d times the standard deviations, float64 [d]; those of features that are the same in every prompt count as 1."""
    deviation = features.std(dim=0, correction=0)
    varied = torch.where(deviation > 1e-9, deviation, torch.ones_like(deviation))
    return varied * math.sqrt(features.shape[1])


def _cost(log_ratio: Tensor, prompts: Prompts) -> float:
    """Balanced cross-entropy; ln 2 for ratios of 1."""
    good = prompts.desirable @ F.softplus(-log_ratio) / prompts.desirable.sum()
    bad = prompts.undesirable @ F.softplus(log_ratio) / prompts.undesirable.sum()
    return float(good + bad) / 2


def _folds(prompts: Prompts) -> Tensor:
    """Deal prompts into folds so that each fold has prompts of either kind: int64 [N]."""
    good, bad = prompts.desirable > 0, prompts.undesirable > 0
    for kind, found in (("desirable", int(good.sum())), ("undesirable", int(bad.sum()))):
        if found < FOLDS:
            raise DataError(
                f"objective bco: matching compares the prompts of desirable and undesirable answers, but only {found} "
                f"different prompts have {kind} answers and at least {FOLDS} of either kind are needed; set "
                "objective.matching: false, or add rows"
            )
    # Those of one kind, then those of both, then those of the other: either kind is one stretch, and meets every fold.
    order = torch.argsort(bad.long() - good.long(), stable=True)
    folds = torch.empty(len(order), dtype=torch.int64)
    folds[order] = torch.arange(len(order)) % FOLDS
    return folds
