"""The objective on held-out rows, without gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from truing.core.batch import Batch, Totals
from truing.models.roles import Trained
from truing.objectives.base import Objective
from truing.training.foresight import foresee
from truing.training.ranks import ALONE, Ranks
from truing.training.source import Annotate


def evaluate(
    policy: Trained,
    objective: Objective,
    batches: Sequence[Batch],
    annotate: Annotate,
    memory: Mapping[str, float],
    fillers: Sequence[Batch] = (),
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Return `eval_loss` and every metric of the objective with the prefix `eval_`, over all batches as one step.

    Every rank brings its own batches; fillers count nothing.
    """
    totals = ranks.total(Totals.of(batches))
    loss = 0.0
    metrics = []
    wanted = {"entropy": objective.wants_entropy, "squares": objective.wants_squares}
    with torch.no_grad():
        own, others = ([annotate(bare) for bare in part] for part in (batches, fillers))
        for number, batch in enumerate(foresee(policy, objective, own, memory, others, ranks)):
            for outputs in policy.passes(batch, objective.trained(0), **wanted):
                if number < len(batches):
                    share = objective(outputs, batch, totals)
                    loss += float(share.loss)
                    metrics.append(share.metrics)
    loss, found = ranks.together(loss, metrics)
    found |= objective.derived(found)
    return {"eval_loss": loss, **{f"eval_{name}": value for name, value in found.items()}}
