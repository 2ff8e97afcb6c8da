"""The objective on held-out rows, without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from truing.core.batch import Batch, Totals
from truing.core.reduce import average
from truing.models.roles import Role
from truing.objectives.base import Objective
from truing.training.source import Annotate


def evaluate(policy: Role, objective: Objective, batches: Sequence[Batch], annotate: Annotate) -> dict[str, float]:
    """Return `eval_loss` and every metric of the objective with the prefix `eval_`, over all batches as one step."""
    totals = Totals.of(batches)
    loss = 0.0
    metrics = []
    with torch.no_grad():
        for bare in batches:
            batch = annotate(bare)
            share = objective(policy.outputs(batch), batch, totals)
            loss += float(share.loss)
            metrics.append(share.metrics)
    return {"eval_loss": loss, **{f"eval_{name}": value for name, value in average(metrics).items()}}
