"""Laws that every objective keeps, whatever it is: they run on all that the registry discovers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.objectives.trees import outputs, random_columns, random_tree, whole_and_parts
from truing.core.batch import Totals, collate
from truing.core.errors import InputError
from truing.core.reduce import average
from truing.objectives.base import Objective
from truing.objectives.registry import discover

ALL = sorted(discover().items())
everything = pytest.mark.parametrize("objective", [cls() for _, cls in ALL], ids=[name for name, _ in ALL])


def completions_of(objective: Objective) -> int:
    return 2 if objective.examples == "comparison" else 1


@everything
def test_splitting_a_step_does_not_change_loss_metrics_or_gradient(objective: Objective) -> None:
    whole, parts = whole_and_parts(1, completions=completions_of(objective))
    rng = np.random.default_rng(2)
    policy, reference = random_columns(whole, rng)
    totals = Totals.of([whole])
    assert totals == Totals.of(parts)
    share = objective(outputs(policy), whole.with_columns(ref_logprobs=reference), totals)
    (expected,) = torch.autograd.grad(share.loss, policy)

    ends = np.cumsum([part.num_targets for part in parts])[:-1].tolist()
    leaf = policy.detach().clone().requires_grad_(True)
    shares = [
        objective(outputs(mine), part.with_columns(ref_logprobs=ref), totals)
        for part, mine, ref in zip(
            parts, torch.tensor_split(leaf, ends), torch.tensor_split(reference, ends), strict=True
        )
    ]
    loss = sum(s.loss for s in shares)
    assert isinstance(loss, torch.Tensor)
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(loss, share.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    whole_metrics, split_metrics = average([share.metrics]), average([s.metrics for s in shares])
    assert whole_metrics.keys() == split_metrics.keys()
    for name, value in whole_metrics.items():
        assert split_metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


@everything
def test_masked_tokens_have_no_say(objective: Objective) -> None:
    """Changing the text of unsupervised completion tokens changes nothing: they are not among the targets."""
    rng = np.random.default_rng(3)
    trees = [random_tree(rng, completions=completions_of(objective)) for _ in range(4)]
    changed = []
    for tree in trees:
        completions = []
        for c in tree.completions:
            tokens = np.where(c.mask, c.tokens, (c.tokens + 1) % 50).astype(np.int32)
            completions.append(type(c)(tokens, c.mask, c.label))
        changed.append(type(tree)(tree.prompt, tuple(completions), tree.pairs))
    before, after = collate(trees), collate(changed)
    assert not torch.equal(before.tokens, after.tokens), "the test needs some unsupervised tokens"
    assert torch.equal(before.targets, after.targets)
    policy, reference = random_columns(before, rng)
    losses = [
        objective(outputs(policy), batch.with_columns(ref_logprobs=reference), Totals.of([batch])).loss
        for batch in (before, after)
    ]
    assert torch.equal(losses[0], losses[1])


@everything
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3, 1e4])
def test_extreme_log_probs_stay_finite(objective: Objective, scale: float) -> None:
    whole, _ = whole_and_parts(4, completions=completions_of(objective))
    rng = np.random.default_rng(5)
    policy, reference = random_columns(whole, rng)
    leaf = (policy.detach() * scale).requires_grad_(True)
    share = objective(outputs(leaf), whole.with_columns(ref_logprobs=reference), Totals.of([whole]))
    (gradient,) = torch.autograd.grad(share.loss, leaf)
    assert torch.isfinite(share.loss)
    assert torch.isfinite(gradient).all()


@everything
def test_gradient_agrees_with_finite_differences(objective: Objective) -> None:
    whole, _ = whole_and_parts(6, trees=3, completions=completions_of(objective))
    rng = np.random.default_rng(7)
    policy, reference = random_columns(whole, rng)
    batch, totals = whole.with_columns(ref_logprobs=reference), Totals.of([whole])
    (gradient,) = torch.autograd.grad(objective(outputs(policy), batch, totals).loss, policy)
    direction = torch.tensor(rng.standard_normal(whole.num_targets), dtype=torch.float32)
    step = 1e-2
    up = objective(outputs(policy.detach() + step * direction), batch, totals).loss
    down = objective(outputs(policy.detach() - step * direction), batch, totals).loss
    slope = float(up - down) / (2 * step)
    assert slope == pytest.approx(float(gradient @ direction), rel=2e-3, abs=2e-4)


@everything
def test_a_missing_column_is_named(objective: Objective) -> None:
    whole, _ = whole_and_parts(8, completions=completions_of(objective))
    policy, _ = random_columns(whole, np.random.default_rng(9))
    for column in objective.needs:
        with pytest.raises(InputError, match=f"'{column}'"):
            objective(outputs(policy), whole, Totals.of([whole]))
    if not objective.needs:
        assert torch.isfinite(objective(outputs(policy), whole, Totals.of([whole])).loss)


def test_every_objective_states_its_source_and_purpose() -> None:
    assert {"sft", "dpo", "ipo", "simpo", "orpo"} <= set(discover())
    for name, cls in ALL:
        assert cls.paper, name
        assert cls.purpose.endswith("."), name
        for field_name, field in cls.model_fields.items():
            assert field.description, f"{name}.{field_name} has no docstring"
