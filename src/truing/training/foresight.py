"""What a step has to know about itself before its gradient: a pass over all its micro-batches without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from truing.core.batch import Batch, Outputs, keep_completions
from truing.models.roles import Trained
from truing.objectives.base import Objective
from truing.training.exchange import everyones
from truing.training.ranks import ALONE, Ranks


def foresee(
    policy: Trained,
    objective: Objective,
    batches: Sequence[Batch],
    memory: Mapping[str, float],
    fillers: Sequence[Batch] = (),
    ranks: Ranks = ALONE,
) -> Sequence[Batch]:
    """Return the batches to differentiate, with the columns that depend on the whole step and on earlier ones.

    Fillers follow them. They are computed like the others, and the step knows nothing of them.
    """
    everything = [*batches, *fillers]
    if everything:
        recalled = {name: value.to(everything[0].tokens.device) for name, value in objective.recall(memory).items()}
        everything = [batch.with_columns(**recalled) for batch in everything] if recalled else everything
    if not objective.looks_ahead:
        return everything
    passes = [_two_passes(objective, batch) for batch in everything]
    with torch.no_grad():
        outputs = [next(policy.passes(first, ("policy",))) for first, _ in passes]
        columns = _look_ahead(objective, outputs, [first for first, _ in passes], len(batches), ranks)
    return [second.with_columns(**own) for (_, second), own in zip(passes, columns, strict=True)]


def _look_ahead(
    objective: Objective, outputs: Sequence[Outputs], batches: Sequence[Batch], count: int, ranks: Ranks
) -> list[Mapping[str, Tensor]]:
    """The columns of this rank's batches, of which the first `count` are part of the step."""
    if not ranks.several:
        return list(objective.look_ahead(outputs, batches))
    all_outputs, all_batches, own = everyones(ranks, outputs[:count], batches[:count])
    found = list(objective.look_ahead(all_outputs, all_batches)[own])
    for out, filler in zip(outputs[count:], batches[count:], strict=True):
        found += objective.look_ahead([out], [filler])
    return [
        {name: value.to(batch.targets.device) for name, value in columns.items()}
        for columns, batch in zip(found, batches, strict=True)
    ]


def _two_passes(objective: Objective, batch: Batch) -> tuple[Batch, Batch]:
    """What is computed ahead, and what with gradient."""
    ahead = objective.only_ahead(batch)
    if ahead is None:
        return batch, batch
    return keep_completions(batch, ahead), keep_completions(batch, [not only for only in ahead])
