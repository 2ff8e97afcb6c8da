"""Random rollouts, and batches of them cut in any way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tests.objectives.rollout_reference import Numbers, Written
from truing.core.batch import Batch, Outputs, Totals, collate
from truing.core.reduce import Metric, average
from truing.core.trees import Completion, Tree
from truing.objectives.policy_gradient import Prepared, RolloutObjective

Micro = Sequence[Sequence[int]]
"""Trees of a micro-batch, each the numbers of its completions in the rollout."""


def random_rollout(rng: np.random.Generator, *, prompts: int = 4, group: int = 3, longest: int = 7) -> list[Written]:
    """Completions whose log-probs have moved enough for clips to act; every number is one of float32."""

    def near(x: Numbers, size: float) -> Numbers:
        return np.minimum(x + rng.normal(0, size, len(x)), -0.01).astype(np.float32).astype(np.float64)

    found = []
    for number in range(prompts * group):
        n = int(rng.integers(1, longest + 1))
        old = (-rng.gamma(2.0, 1.0, n) - 0.3).astype(np.float32).astype(np.float64)
        values = rng.normal(0, 1, n).astype(np.float32).astype(np.float64)
        found.append(
            Written(
                policy=near(old, 0.3),
                old=old,
                ref=near(old, 0.4),
                critic=(values + rng.normal(0, 0.3, n)).astype(np.float32).astype(np.float64),
                values=values,
                entropy=rng.gamma(1.0, 1.0, n).astype(np.float32).astype(np.float64),
                score=float(np.float32(rng.normal(0.5, 1.5))),
                ended=bool(rng.random() < 0.7),
                group=number // group,
            )
        )
    return found


def unmoved(rollout: Sequence[Written]) -> list[Written]:
    """The same rollout before the first update: policy, the policy that wrote it and the reference are one."""
    return [replace(one, policy=one.old, ref=one.old) for one in rollout]


def batch_of(rollout: Sequence[Written], micro: Micro, pairs: Sequence[tuple[int, int]] = ()) -> Batch:
    """A micro-batch with the columns that a rollout fills; `policy`, `critic` and `entropy` are for `step_of`.

    `pairs` are those of each tree.
    """
    trees = [
        Tree(
            np.asarray([rollout[tree[0]].group], dtype=np.int32),
            tuple(
                Completion(np.full(len(rollout[i].old), i, np.int32), np.ones(len(rollout[i].old), bool)) for i in tree
            ),
            tuple(pairs),
        )
        for tree in micro
    ]
    rows = [rollout[i] for tree in micro for i in tree]

    def tokens(name: str) -> torch.Tensor:
        return torch.tensor(np.concatenate([getattr(row, name) for row in rows]), dtype=torch.float32)

    return collate(trees).with_columns(
        policy=tokens("policy"),
        critic=tokens("critic"),
        entropy=tokens("entropy"),
        old_logprobs=tokens("old"),
        ref_logprobs=tokens("ref"),
        values=tokens("values"),
        scores=torch.tensor([row.score for row in rows], dtype=torch.float32),
        ended=torch.tensor([row.ended for row in rows]),
        groups=torch.tensor([row.group for row in rows]),
    )


def prepared(objective: RolloutObjective, batches: Sequence[Batch]) -> tuple[list[Batch], Prepared]:
    """The batches with the columns of the whole rollout, as a source of steps fills them."""
    found = objective.prepare(batches, {})
    return [batch.with_columns(**own) for batch, own in zip(batches, found.columns, strict=True)], found


def step_of(
    objective: RolloutObjective, batches: Sequence[Batch], *, apart: bool = False
) -> tuple[float, dict[str, float], dict[int, dict[str, torch.Tensor]]]:
    """A step's loss, its metrics, and gradients of policy, critic and entropy, float32 [n], of each completion.

    With `apart`, policy and critic are asked one after the other.
    """
    totals = Totals.of(batches)
    loss = 0.0
    metrics: list[dict[str, Metric]] = []
    gradients: dict[int, dict[str, torch.Tensor]] = {}
    for batch in batches:
        leaves = {name: batch.column(name).clone().requires_grad_(True) for name in ("policy", "critic", "entropy")}
        entropy = leaves["entropy"] if objective.wants_entropy else None
        values = leaves["critic"] if objective.criticised else None
        passes = [Outputs(leaves["policy"], entropy=entropy, values=values)]
        if apart and objective.criticised:
            passes = [Outputs(leaves["policy"], entropy=entropy), Outputs(torch.zeros(0), values=values)]
        for outputs in passes:
            share = objective(outputs, batch, totals)
            share.loss.backward()
            loss += float(share.loss.detach())
            metrics.append(dict(share.metrics))
        zero = torch.zeros(batch.num_targets)
        for name, leaf in leaves.items():
            parts = (zero if leaf.grad is None else leaf.grad).split(list(batch.target_counts))
            for number, part in zip(numbers_of(batch), parts, strict=True):
                gradients.setdefault(number, {})[name] = part
    return loss, average(metrics), gradients


def numbers_of(batch: Batch) -> list[int]:
    """Which completions of the rollout a batch holds: their tokens say so."""
    firsts = np.cumsum([0, *batch.target_counts[:-1]])
    return [int(batch.targets[first]) for first in firsts]


def by_number(batches: Sequence[Batch], name: str) -> dict[int, torch.Tensor]:
    """A column of tokens, float32 [n], for each completion of the rollout."""
    return {
        number: part
        for batch in batches
        for number, part in zip(numbers_of(batch), batch.column(name).split(list(batch.target_counts)), strict=True)
    }


def random_cut(rng: np.random.Generator, rollout: Sequence[Written]) -> list[Micro]:
    """The whole rollout in a random order, a prompt's completions over random trees, over random micro-batches."""
    trees = []
    for group in sorted({one.group for one in rollout}):
        members = rng.permutation([i for i, one in enumerate(rollout) if one.group == group])
        borders = np.flatnonzero(rng.random(len(members) - 1) < 0.4) + 1
        trees += [[int(i) for i in part] for part in np.split(members, borders)]
    order = [trees[i] for i in rng.permutation(len(trees))]
    borders = np.flatnonzero(rng.random(len(order) - 1) < 0.4) + 1
    return [order[first:last] for first, last in zip([0, *borders], [*borders, len(order)], strict=True)]
