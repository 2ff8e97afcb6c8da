"""What a step has to know about itself before its gradient: a pass over all its micro-batches without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from truing.core.batch import Batch, keep_completions
from truing.models.roles import Trained
from truing.objectives.base import Objective


def foresee(
    policy: Trained, objective: Objective, batches: Sequence[Batch], memory: Mapping[str, float]
) -> Sequence[Batch]:
    """Return the batches to differentiate, with the columns that depend on the whole step and on earlier ones."""
    recalled = {name: value.to(batches[0].tokens.device) for name, value in objective.recall(memory).items()}
    if recalled:
        batches = [batch.with_columns(**recalled) for batch in batches]
    if not objective.looks_ahead:
        return batches
    first, second = zip(*(_two_passes(objective, batch) for batch in batches), strict=True)
    with torch.no_grad():
        outputs = [next(policy.passes(batch, ("policy",))) for batch in first]
        columns = objective.look_ahead(outputs, first)
    return [batch.with_columns(**own) for batch, own in zip(second, columns, strict=True)]


def _two_passes(objective: Objective, batch: Batch) -> tuple[Batch, Batch]:
    """What is computed ahead, and what with gradient."""
    ahead = objective.only_ahead(batch)
    if ahead is None:
        return batch, batch
    return keep_completions(batch, ahead), keep_completions(batch, [not only for only in ahead])
