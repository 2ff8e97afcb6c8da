"""The objective on held-out rows, without gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from truing.core.batch import Batch, Totals
from truing.core.reduce import average
from truing.models.roles import Trained
from truing.objectives.base import Objective
from truing.training.foresight import foresee
from truing.training.source import Annotate


def evaluate(
    policy: Trained, objective: Objective, batches: Sequence[Batch], annotate: Annotate, memory: Mapping[str, float]
) -> dict[str, float]:
    """Return `eval_loss` and every metric of the objective with the prefix `eval_`, over all batches as one step."""
    totals = Totals.of(batches)
    loss = 0.0
    metrics = []
    with torch.no_grad():
        for batch in foresee(policy, objective, [annotate(bare) for bare in batches], memory):
            wanted = {"entropy": objective.wants_entropy, "squares": objective.wants_squares}
            for outputs in policy.passes(batch, objective.trained(0), **wanted):
                share = objective(outputs, batch, totals)
                loss += float(share.loss)
                metrics.append(share.metrics)
    found = average(metrics)
    found |= objective.derived(found)
    return {"eval_loss": loss, **{f"eval_{name}": value for name, value in found.items()}}
