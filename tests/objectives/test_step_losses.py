"""Losses that look at a whole step before they differentiate it: KTO's reference point, AOT's ranks, BCO's shift."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.objectives import reference
from tests.objectives.test_preference_losses import pairs_of
from tests.objectives.trees import cut, random_columns, step_of, told, trees_for
from truing.core.batch import Batch, Totals, collate, keep_completions
from truing.core.errors import DataError, RecipeError
from truing.core.reduce import sum_by_completion
from truing.objectives.aot import AOT, UnpairedAOT
from truing.objectives.bco import BCO
from truing.objectives.kto import KTO
from truing.objectives.registry import create
from truing.objectives.reward import Reward


def judged(seed: int, objective: KTO | BCO) -> tuple[Batch, torch.Tensor, torch.Tensor, list[Batch]]:
    rng = np.random.default_rng(seed)
    trees = trees_for(objective, rng, 9)
    batch = collate(trees)
    return batch, *random_columns(batch, rng), [collate(part) for part in cut(trees)]


def log_ratios(batch: Batch, policy: torch.Tensor, ref: torch.Tensor) -> list[float]:
    return sum_by_completion((policy.detach() - ref).double(), batch).tolist()


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.4, 0.6)])
def test_kto_equals_the_float64_reference(shift: float, weights: tuple[float, float]) -> None:
    objective = KTO(beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    batch, policy, ref, parts = judged(1, objective)
    ref = ref + shift  # so that the reference point is once clamped, once not
    ratios = log_ratios(batch, policy, ref)
    labels = batch.labels.tolist()
    own = [h for h, label in zip(ratios, labels, strict=True) if label >= 0]
    others = [h for h, label in zip(ratios, labels, strict=True) if label < 0]
    expected = reference.kto(own, [label == 1 for label in labels if label >= 0], others, 0.3, weights)
    for batches in ([batch], parts, [collate([tree]) for tree in trees_for(objective, np.random.default_rng(1), 9)]):
        loss, metrics = step_of(objective, told(batches, policy, ref))
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert metrics["kl"] == pytest.approx(max(0.0, sum(others) / len(others)), abs=1e-6)
        good = [0.3 * h for h, label in zip(ratios, labels, strict=True) if label == 1]
        bad = [0.3 * h for h, label in zip(ratios, labels, strict=True) if label == 0]
        assert metrics["rewards/margins"] == pytest.approx(np.mean(good) - np.mean(bad), abs=1e-5)


def test_kto_has_no_gradient_through_mismatched_answers() -> None:
    objective = KTO()
    batch, policy, ref, _ = judged(2, objective)
    loss, _ = step_of(objective, told([batch], policy, ref))
    (gradient,) = torch.autograd.grad(loss, policy)
    own = (batch.labels >= 0)[batch.target_completion]
    assert (gradient[own] != 0).all()
    assert (gradient[~own] == 0).all()


def test_kto_starts_at_one_half() -> None:
    objective = KTO()
    batch, policy, _, _ = judged(3, objective)
    loss, metrics = step_of(objective, told([batch], policy, policy.detach()))
    assert loss.item() == pytest.approx(0.5, abs=1e-7)
    assert metrics["kl"] == 0.0
    assert objective.start_complaint(loss.item(), metrics, 50) is None
    assert objective.start_complaint(0.51, metrics, 50) is not None


@pytest.mark.parametrize(("good", "bad"), [(10, 10), (10, 90), (90, 10), (60, 50), (1, 1000)])
def test_kto_balances_the_classes(good: int, bad: int) -> None:
    fitted = KTO().for_labels(good, bad)
    assert fitted.desirable_weight is not None
    assert fitted.undesirable_weight is not None
    assert 1 - 1e-9 <= fitted.desirable_weight * good / (fitted.undesirable_weight * bad) <= 1.5 + 1e-9
    assert min(fitted.desirable_weight, fitted.undesirable_weight) == 1.0
    asked = KTO(desirable_weight=2.0).for_labels(good, bad)
    assert (asked.desirable_weight, asked.undesirable_weight) == (2.0, None)


@pytest.mark.parametrize("objective", [KTO(), BCO()])
def test_one_class_only_is_refused(objective: KTO | BCO) -> None:
    with pytest.raises(DataError, match="all 7 answers are labelled desirable"):
        objective.for_labels(7, 0)
    with pytest.raises(DataError, match="all 5 answers are labelled undesirable"):
        objective.for_labels(0, 5)


def test_bco_equals_the_float64_reference_and_remembers_the_mean_reward() -> None:
    objective = BCO(beta=0.3, momentum=0.5)
    batch, policy, ref, parts = judged(4, objective)
    ratios, good = log_ratios(batch, policy, ref), [label == 1 for label in batch.labels.tolist()]
    for memory, delta in (({}, 0.0), ({"rewards/chosen": 1.0, "rewards/rejected": 0.4}, 0.7)):
        for batches in ([batch], parts):
            loss, metrics = step_of(objective, told(batches, policy, ref), memory)
            assert loss.item() == pytest.approx(reference.bco(ratios, good, delta, 0.3), abs=1e-6)
    kinds = ("rewards/chosen", "rewards/rejected")
    assert objective.remember({}, metrics) == {kind: pytest.approx(metrics[kind]) for kind in kinds}
    one = objective.remember({kinds[0]: 1.0, kinds[1]: 0.4}, {kinds[0]: 2.0})
    assert one == {kinds[0]: 1.5, kinds[1]: 0.4}, "a step of one kind says nothing of the other"


def test_bco_weighs_undesirable_answers_by_the_clipped_ratio_of_their_prompts() -> None:
    objective = BCO(beta=0.3, matching=True, min_density_ratio=0.5, max_density_ratio=2.0)
    assert objective.needs == ("ref_logprobs", "density_ratio")
    batch, policy, ref, parts = judged(4, objective)
    ratios, good = log_ratios(batch, policy, ref), [label == 1 for label in batch.labels.tolist()]
    rng = np.random.default_rng(5)
    density = [1.0 if up else float(rng.choice([0.01, 0.8, 1.5, 30.0])) for up in good]
    clipped = [min(max(ratio, 0.5), 2.0) for ratio in density]
    column = torch.tensor(density, dtype=torch.float32)
    expected = reference.bco(ratios, good, 0.7, 0.3, clipped)
    assert expected != pytest.approx(reference.bco(ratios, good, 0.7, 0.3), abs=1e-3), "the weights matter here"
    for batches in ([batch], parts):
        sizes = [part.num_completions for part in batches]
        weighed = [
            part.with_columns(density_ratio=own)
            for part, own in zip(told(batches, policy, ref), column.split(sizes), strict=True)
        ]
        loss, metrics = step_of(objective, weighed, {"rewards/chosen": 1.0, "rewards/rejected": 0.4})
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert metrics["weight"] == pytest.approx(np.mean(clipped))
        plain = step_of(BCO(beta=0.3), told(batches, policy, ref), {"rewards/chosen": 1.0, "rewards/rejected": 0.4})
        assert metrics["rewards/margins"] == plain[1]["rewards/margins"], "rewards are as they come, without weights"
    at_start, metrics = step_of(objective, [told([batch], ref, ref)[0].with_columns(density_ratio=column)])
    assert at_start.item() == pytest.approx(math.log(2) * np.mean(clipped), abs=1e-6)
    assert objective.start_complaint(at_start.item(), metrics, 50) is None
    assert objective.start_complaint(math.log(2), metrics, 50) is not None


@pytest.mark.parametrize("bounds", [{"min_density_ratio": 1.5}, {"max_density_ratio": 0.5}])
def test_bounds_that_would_weigh_desirable_answers_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(bounds))):
        create({"use": "bco", "matching": True, **bounds})


@pytest.mark.parametrize(
    ("objective", "oracle"), [(AOT(beta=0.3), reference.aot), (UnpairedAOT(beta=0.3), reference.aot_unpaired)]
)
def test_aot_equals_the_float64_reference(objective: AOT, oracle) -> None:
    rng = np.random.default_rng(5)
    trees = trees_for(objective, rng, 7)
    batch = collate(trees)
    policy, ref = random_columns(batch, rng)
    expected = oracle(pairs_of(batch, policy, ref), 0.3)
    for batches in ([batch], [collate(part) for part in cut(trees)]):
        loss, _ = step_of(objective, told(batches, policy, ref))
        assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("objective", [AOT(beta=0.3), UnpairedAOT(beta=0.3)])
def test_aot_has_the_gradient_of_the_sorted_step(objective: AOT) -> None:
    rng = np.random.default_rng(6)
    trees = trees_for(objective, rng, 7)
    batch = collate(trees)
    policy, ref = random_columns(batch, rng)
    loss, _ = step_of(objective, told([collate(part) for part in cut(trees)], policy, ref))
    (gradient,) = torch.autograd.grad(loss, policy)
    leaf = policy.detach().double().requires_grad_(True)
    sums = torch.zeros(batch.num_completions, dtype=torch.float64).index_add(0, batch.target_completion, leaf)
    before = torch.zeros_like(sums).index_add(0, batch.target_completion, ref.double())
    chosen, rejected = batch.pairs[:, 0], batch.pairs[:, 1]
    if type(objective) is AOT:
        left, right = sums[chosen] - sums[rejected], before[chosen] - before[rejected]
    else:
        left, right = (sums - before)[chosen], (sums - before)[rejected]
    whole = -F.logsigmoid(0.3 * (left.sort().values - right.sort().values)).mean()
    (expected,) = torch.autograd.grad(whole, leaf)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


def test_reward_equals_the_float64_reference() -> None:
    rng = np.random.default_rng(9)
    objective = Reward(margin=0.5, centering=0.01)
    trees = [replace(tree, margins=(float(rng.random()),)) for tree in trees_for(objective, rng, 5)]
    batch = collate(trees)
    policy, _ = random_columns(batch, rng)
    sums = sum_by_completion(policy.detach().double(), batch).tolist()
    scores = [(sums[good], sums[bad]) for good, bad in batch.pairs.tolist()]
    expected = reference.reward(scores, [0.5 * tree.margins[0] for tree in trees], 0.01)
    for batches in ([batch], [collate(part) for part in cut(trees)]):
        loss, metrics = step_of(objective, told(batches, policy, policy.detach()))
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert metrics["margin"] == pytest.approx(np.mean([a - b for a, b in scores]), rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(np.mean([a > b for a, b in scores]))


def test_a_batch_without_some_completions_is_the_batch_of_what_is_left() -> None:
    """Dropping completions from a batch gives, tensor for tensor, the batch that is made without them."""
    rng = np.random.default_rng(8)
    trees = trees_for(KTO(), rng, 5)
    bare = [type(tree)(tree.prompt, tree.completions[:1]) for tree in trees]
    for shared in (True, False):
        batch = collate(trees, share_prompts=shared)
        policy, _ = random_columns(batch, rng)
        left = keep_completions(batch.with_columns(policy=policy), [label >= 0 for label in batch.labels.tolist()])
        expected = collate(bare)
        for name in ("tokens", "positions", "predictors", "targets", "target_completion", "completion_tree", "labels"):
            assert torch.equal(getattr(left, name), getattr(expected, name)), name
        assert left.layout == expected.layout
        assert left.target_counts == expected.target_counts
        own = (batch.labels >= 0)[batch.target_completion]
        assert torch.equal(left.column("policy"), policy[own])
    assert Totals.of([collate(trees)]).labelled == 5
    assert math.isclose(Totals.of([left]).completions, 5)
