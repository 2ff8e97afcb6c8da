"""Random trees and outputs for testing losses without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from truing.core.batch import Batch, Outputs, Totals, collate
from truing.core.reduce import Share, average, sum_by_completion
from truing.core.trees import Completion, Tree
from truing.objectives.base import Objective
from truing.objectives.policy_gradient import RolloutObjective
from truing.training.foresight import foresee


def random_tree(rng: np.random.Generator, *, completions: int = 2, longest: int = 9, judged: bool = False) -> Tree:
    """A tree with pair (0, 1) when it has two completions, unless it is judged: then the first alone has a label.

    Some tokens are unsupervised, never all.
    """
    parts = []
    for index in range(completions):
        size = int(rng.integers(1, longest + 1))
        mask = rng.random(size) < 0.8
        mask[-1] = True
        label = bool(rng.random() < 0.6) if judged and index == 0 else None
        parts.append(Completion(rng.integers(0, 50, size, dtype=np.int32), mask, label=label))
    prompt = rng.integers(0, 50, int(rng.integers(1, 6)), dtype=np.int32)
    return Tree(prompt, tuple(parts), pairs=((0, 1),) if completions == 2 and not judged else ())


def trees_for(objective: Objective, rng: np.random.Generator, count: int) -> list[Tree]:
    """Trees of the kind that an objective learns from; of a rollout, what it picks of two completions of a prompt."""
    if isinstance(objective, RolloutObjective):
        picked = objective.pick([1.0, 0.0])
        trees = [random_tree(rng, completions=len(picked.keep)) for _ in range(count)]
        return [replace(tree, pairs=picked.pairs) for tree in trees]
    judged = objective.examples == "judgement"
    completions = 2 if objective.examples == "comparison" or objective.mismatches else 1
    return [random_tree(rng, completions=completions, judged=judged) for _ in range(count)]


def random_columns(batch: Batch, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of policy and reference, float32 [K], the first a leaf that wants a gradient."""
    policy = torch.tensor(-rng.gamma(1.0, 1.0, batch.num_targets) - 0.01, dtype=torch.float32, requires_grad=True)
    reference = torch.tensor(-rng.gamma(1.0, 1.0, batch.num_targets) - 0.01, dtype=torch.float32)
    return policy, reference


def cut(trees: Sequence[Tree]) -> list[list[Tree]]:
    """The same trees as three micro-batches of unequal size."""
    return [list(trees[:1]), list(trees[1:4]), list(trees[4:])]


def whole_and_parts(seed: int, *, trees: int = 6, completions: int = 2) -> tuple[Batch, list[Batch]]:
    """One batch, and the same trees cut into three micro-batches."""
    rng = np.random.default_rng(seed)
    all_trees = [random_tree(rng, completions=completions) for _ in range(trees)]
    return collate(all_trees), [collate(part) for part in cut(all_trees)]


def outputs(logprobs: torch.Tensor) -> Outputs:
    return Outputs(logprobs=logprobs)


class Told:
    """A model that says what the batch's columns `policy` and `squares` say, however the batch was cut.

    As a reward model it scores a completion by the sum of its log-probs; as a critic it expects what `critic` says.
    """

    noisy = False

    def outputs(self, batch: Batch, *, entropy: bool = False, squares: bool = False) -> Outputs:
        logprobs = batch.column("policy")
        return Outputs(
            logprobs,
            log_squares=batch.column("squares") if squares else None,
            scores=sum_by_completion(logprobs, batch),
            values=batch.columns.get("critic"),
        )

    def passes(
        self, batch: Batch, roles: Sequence[str], *, entropy: bool = False, squares: bool = False
    ) -> Iterator[Outputs]:
        yield self.outputs(batch, entropy=entropy, squares=squares)


def told(batches: Sequence[Batch], policy: torch.Tensor, reference: torch.Tensor) -> list[Batch]:
    """The batches with their parts of log-probs over the whole step: float32 [ΣK] each."""
    sizes = [batch.num_targets for batch in batches]
    squares = -policy.detach().abs() / 2
    return [
        batch.with_columns(policy=mine, ref_logprobs=ref, squares=square)
        for batch, mine, ref, square in zip(
            batches, policy.split(sizes), reference.split(sizes), squares.split(sizes), strict=True
        )
    ]


def rolled_out(objective: Objective, batches: Sequence[Batch]) -> Sequence[Batch]:
    """For a rollout method, the batches with the columns of a rollout, and what it makes of the whole of them.

    Ratios are well within or well beyond the clip, and 1 where the reference is the policy; all else follows from the
    tokens, however they are cut.
    """
    if not isinstance(objective, RolloutObjective):
        return batches
    written = []
    first = 0
    for batch in batches:
        policy = batch.column("policy").detach()
        counted = sum_by_completion(batch.targets.float(), batch)
        values = (batch.targets % 5).float() / 5
        away = torch.where(batch.targets % 2 == 0, 0.05, 0.35)
        written.append(
            batch.with_columns(
                old_logprobs=policy + torch.sign(batch.columns.get("ref_logprobs", policy) - policy) * away,
                scores=(counted % 7) / 3,
                ended=counted % 3 > 0,
                # Neighbours answer the same prompt, in one tree or in two.
                groups=torch.arange(first, first + batch.num_completions) // 2,
                values=values,
                **({"critic": values + (batch.targets % 3) / 4} if objective.criticised else {}),
            )
        )
        first += batch.num_completions
    prepared = objective.prepare(written, {})
    return [batch.with_columns(**own) for batch, own in zip(written, prepared.columns, strict=True)]


def seen(objective: Objective, batches: Sequence[Batch], memory: Mapping[str, float]) -> Sequence[Batch]:
    """The batches of a step as a trainer differentiates them."""
    return foresee(Told(), objective, rolled_out(objective, batches), memory)


def shares_of(objective: Objective, batches: Sequence[Batch], memory: Mapping[str, float] | None = None) -> list[Share]:
    """What a trainer makes of a step: the look ahead, then each micro-batch's share."""
    totals = Totals.of(batches)
    return [
        objective(Told().outputs(batch, squares=objective.wants_squares), batch, totals)
        for batch in seen(objective, batches, memory or {})
    ]


def step_of(
    objective: Objective, batches: Sequence[Batch], memory: Mapping[str, float] | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss and metrics of a whole step."""
    shares = shares_of(objective, batches, memory)
    metrics = average([share.metrics for share in shares])
    return torch.stack([share.loss for share in shares]).sum(), {**metrics, **objective.derived(metrics)}
