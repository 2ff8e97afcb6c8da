"""Ratios of prompt densities: right where they are known, near 1 where there is nothing to know, honest throughout."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from truing.core.batch import collate
from truing.core.errors import DataError
from truing.core.trees import Completion, Tree
from truing.training.density import FOLDS, DensityRatios, Prompts, auc, cross_fit, fit, keep_ratios
from truing.training.reference import LogprobStore


def gaussian(count: int, width: int, shift: float, *, seed: int = 0, share: float = 0.5) -> Prompts:
    """Prompts of one answer each: desirable ones around +shift/2 of the first feature, undesirable around −shift/2.

    Both have deviation 1, so log p(x | D⁺)/p(x | D⁻) is exactly shift · x₀ (for equal deviations the log of a ratio of
    two normal densities is linear: −½(x − s/2)² + ½(x + s/2)² = s x).
    """
    rng = np.random.default_rng(seed)
    good = rng.random(count) < share
    features = rng.standard_normal((count, width))
    features[:, 0] += np.where(good, shift / 2, -shift / 2)
    return Prompts(torch.tensor(features), torch.tensor(good).double(), torch.tensor(~good).double())


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_ratio_is_that_of_the_densities_whatever_the_class_sizes(share: float) -> None:
    prompts = gaussian(6000, 3, 1.5, share=share)
    found = cross_fit(prompts)
    error = found.log_ratio - 1.5 * prompts.features[:, 0]
    assert error.abs().mean() < 0.15, "on a scale of which the deviation is about 1.9"
    p = torch.sigmoid(found.log_ratio)
    torch.testing.assert_close(found.log_ratio.exp(), p / (1 - p))
    # E over D⁻ of p(x | D⁺)/p(x | D⁻) is 1: reweighted, undesirable prompts have the mean of desirable ones.
    bad = prompts.undesirable > 0
    weights = found.log_ratio[bad].exp()
    assert float(weights @ prompts.features[bad, 0] / weights.sum()) == pytest.approx(0.75, abs=0.25)
    # Two normals at a distance of 1.5: AUC = Φ(1.5/√2).
    assert found.auc == pytest.approx(0.5 * (1 + math.erf(1.5 / 2)), abs=0.02)


@pytest.mark.parametrize(("count", "width"), [(400, 8), (120, 300)])
def test_prompts_of_one_distribution_weigh_about_one(count: int, width: int) -> None:
    """Also where features outnumber prompts, so that any two sets can be told apart by one who has seen them."""
    worlds = [gaussian(count, width, 0.0, seed=seed) for seed in range(5)]
    found = [cross_fit(prompts) for prompts in worlds]
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.08)
    assert float(torch.cat([one.log_ratio for one in found]).abs().mean()) < 0.15
    unseen = gaussian(200, width, 0.0, seed=9).features
    assert float(torch.cat([one.whole.log_ratio(unseen) for one in found]).abs().mean()) < 0.15
    if width > count:
        seen = fit(worlds[0], 1e-4).log_ratio(worlds[0].features)
        assert auc(seen, worlds[0], torch.zeros(count)) == 1.0, "fitted and asked on the same prompts"


def test_prompts_with_both_kinds_of_answers_weigh_exactly_one() -> None:
    features = torch.tensor(np.random.default_rng(3).standard_normal((20, 4)))
    both = torch.ones(20, dtype=torch.float64)
    found = cross_fit(Prompts(features, both, both))
    torch.testing.assert_close(found.log_ratio, torch.zeros(20, dtype=torch.float64), atol=1e-9, rtol=0)
    assert found.auc == pytest.approx(0.5)


def test_the_fit_is_a_stationary_point_of_the_balanced_loss() -> None:
    prompts = gaussian(200, 5, 1.0, seed=4, share=0.2)
    found = fit(prompts, 0.01)
    inputs = (prompts.features - found.mean) / found.scale
    assert float(inputs.square().sum(dim=1).mean()) == pytest.approx(1.0)
    p = torch.sigmoid(found.log_ratio(prompts.features))
    good, bad = prompts.desirable / prompts.desirable.sum(), prompts.undesirable / prompts.undesirable.sum()
    slope = 0.5 * (bad * p - good * (1 - p))
    assert float(slope.sum()) == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(inputs.T @ slope + 0.01 * found.weight, torch.zeros(5).double(), atol=1e-7, rtol=0)


def test_the_same_prompts_give_the_same_bits_and_features_alone_no_warning() -> None:
    prompts = gaussian(100, 5, 1.0, seed=5)
    constant = Prompts(
        torch.cat([prompts.features, torch.ones(100, 1).double()], dim=1), prompts.desirable, prompts.undesirable
    )
    assert torch.equal(cross_fit(constant).log_ratio, cross_fit(constant).log_ratio)
    assert torch.isfinite(cross_fit(constant).log_ratio).all()


def test_auc_counts_pairs_and_halves_ties() -> None:
    """Desirable 2, 1; undesirable 1, 0, and 1 again: wins 3 + (½ + 1 + ½) of 6 pairs."""
    prompts = Prompts(torch.zeros(3, 1), torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([0.0, 2.0, 1.0]).double())
    ratios = torch.tensor([2.0, 1.0, 0.0]).double()
    assert auc(ratios, prompts, torch.zeros(3)) == pytest.approx(5 / 6)
    apart = torch.tensor([0, 1, 0])  # 2 > 0 in one fold, two ties in the other
    assert auc(ratios, prompts, apart) == pytest.approx(2 / 3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_too_few_prompts_of_a_kind_are_refused(share: float) -> None:
    with pytest.raises(DataError, match=f"only 0 different prompts have .* at least {FOLDS}"):
        cross_fit(gaussian(30, 2, 0.0, share=share))


def test_the_column_is_the_ratio_for_undesirable_answers_and_one_for_others(tmp_path: Path) -> None:
    def tree(token: int, label: bool | None) -> Tree:
        answer = Completion(np.array([7, 8], dtype=np.int32), np.ones(2, dtype=bool), label)
        return Tree(np.array([token], dtype=np.int32), (answer,))

    trees = [tree(1, False), tree(2, True), tree(3, None), tree(4, False), tree(5, False)]
    store = LogprobStore(tmp_path, "key")
    log_ratio = torch.tensor([math.log(3.0), 2.0, 2.0, 900.0, -900.0], dtype=torch.float64)
    keep_ratios(store, [tree.digest() for tree in trees], log_ratio)
    store.save()
    column = DensityRatios(LogprobStore(tmp_path, "key"))(collate(trees)).column("density_ratio")
    assert column.dtype == torch.float32
    assert column[:3].tolist() == pytest.approx([3.0, 1.0, 1.0])
    assert torch.isfinite(column).all()
    assert column[3] > 1e30
    assert 0 < column[4] < 1e-30
