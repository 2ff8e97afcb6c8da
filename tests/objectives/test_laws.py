"""Laws that every objective keeps, whatever it is: they run on all that the registry discovers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.objectives.trees import Told, cut, random_columns, seen, step_of, told, trees_for
from truing.core.batch import Totals, collate
from truing.core.errors import InputError
from truing.objectives.base import Objective
from truing.objectives.registry import discover

ALL = sorted(discover().items())
everything = pytest.mark.parametrize("objective", [cls() for _, cls in ALL], ids=[name for name, _ in ALL])


MEMORY = {"rewards/chosen": 0.5, "rewards/rejected": 0.1}
"""What an objective may remember of earlier steps."""


@everything
def test_splitting_a_step_does_not_change_loss_metrics_or_gradient(objective: Objective) -> None:
    rng = np.random.default_rng(1)
    trees = trees_for(objective, rng, 6)
    whole, parts = [collate(trees)], [collate(part) for part in cut(trees)]
    policy, reference = random_columns(whole[0], rng)
    loss, metrics = step_of(objective, told(whole, policy, reference), MEMORY)
    (expected,) = torch.autograd.grad(loss, policy)
    leaf = policy.detach().clone().requires_grad_(True)
    split_loss, split_metrics = step_of(objective, told(parts, leaf, reference), MEMORY)
    (gradient,) = torch.autograd.grad(split_loss, leaf)
    torch.testing.assert_close(split_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)
    assert metrics.keys() == split_metrics.keys()
    for name, value in metrics.items():
        assert split_metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert objective.remember(MEMORY, metrics) == pytest.approx(objective.remember(MEMORY, split_metrics))


@everything
def test_masked_tokens_have_no_say(objective: Objective) -> None:
    """Changing the text of unsupervised completion tokens changes nothing: they are not among the targets."""
    rng = np.random.default_rng(3)
    trees = trees_for(objective, rng, 4)
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
    losses = [step_of(objective, told([batch], policy, reference))[0] for batch in (before, after)]
    assert torch.equal(losses[0], losses[1])


@everything
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e3, 1e4])
def test_extreme_log_probs_stay_finite(objective: Objective, scale: float) -> None:
    rng = np.random.default_rng(5)
    batch = collate(trees_for(objective, rng, 6))
    policy, reference = random_columns(batch, rng)
    leaf = (policy.detach() * scale).requires_grad_(True)
    loss, _ = step_of(objective, told([batch], leaf, reference))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@everything
def test_gradient_agrees_with_finite_differences(objective: Objective) -> None:
    if objective.name == "aot_unpaired":
        pytest.skip("its value and its gradient are built apart; test_aot compares them with a sort of the whole step")
    if objective.name == "wpo":
        pytest.skip("its weights move too and have no gradient; test_preference_losses compares it with a reference")
    rng = np.random.default_rng(7)
    batch = collate(trees_for(objective, rng, 3))
    policy, reference = random_columns(batch, rng)
    # What a rollout or a look ahead says is a constant of the step: it is found once, then the policy moves.
    fixed = seen(objective, told([batch], policy, reference), MEMORY)
    totals = Totals.of([batch])

    def loss(logprobs: torch.Tensor) -> torch.Tensor:
        moved = fixed[0].with_columns(policy=logprobs)
        return objective(Told().outputs(moved, squares=objective.wants_squares), moved, totals).loss

    leaf = fixed[0].column("policy").detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = torch.tensor(rng.standard_normal(len(leaf)), dtype=torch.float32)
    step = 1e-2
    slope = float(loss(leaf.detach() + step * direction) - loss(leaf.detach() - step * direction)) / (2 * step)
    rounding = 1e-5 * float(
        loss(leaf.detach())
    )  # what float32 leaves of a difference of two losses, over twice the step
    assert slope == pytest.approx(float(gradient @ direction), rel=2e-3, abs=max(2e-4, rounding))


@everything
def test_a_missing_column_is_named(objective: Objective) -> None:
    rng = np.random.default_rng(9)
    batch = collate(trees_for(objective, rng, 6))
    policy, _ = random_columns(batch, rng)
    given = batch.with_columns(policy=policy, squares=policy.detach())
    for column in objective.needs:
        with pytest.raises(InputError, match=f"'{column}'"):
            step_of(objective, [given])
    if not objective.needs:
        assert torch.isfinite(step_of(objective, [given])[0])


@everything
def test_the_first_loss_and_figures_are_as_stated_where_policy_and_reference_are_one(
    objective: Objective,
) -> None:
    rng = np.random.default_rng(11)
    batch = collate(trees_for(objective, rng, 6))
    policy, _ = random_columns(batch, rng)
    loss, metrics = step_of(objective, told([batch], policy, policy.detach()))
    if objective.start() is not None:
        assert loss.item() == pytest.approx(objective.start(), rel=1e-6)
    if "First line: `rewards/margins` 0 and `rewards/accuracies` 0.5" in objective.watch:
        assert metrics["rewards/margins"] == 0.0
        assert metrics["rewards/accuracies"] == 0.5


def test_every_objective_states_its_source_its_purpose_and_what_to_watch() -> None:
    assert {"sft", "dpo", "ipo", "simpo", "orpo", "kto", "bco", "aot", "wpo"} <= set(discover())
    assert {"ppo", "grpo", "rloo", "reinforce", "online_dpo", "best_of_n"} <= set(discover())
    for name, cls in ALL:
        assert cls.paper, name
        for text in (cls.purpose, cls.avoid, cls.watch, cls.failure):
            assert text.endswith("."), name
        for field_name, field in cls.model_fields.items():
            assert field.description, f"{name}.{field_name} has no docstring"
