"""The gradient of an optimizer step: the shares of all its micro-batches, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from truing.core.errors import NothingToTrain
from truing.models.roles import Trained
from truing.objectives.base import Objective
from truing.training.foresight import foresee
from truing.training.memory_failure import naming_rows
from truing.training.ranks import Ranks
from truing.training.source import PreparedStep


def accumulate(
    policy: Trained, objective: Objective, step: PreparedStep, memory: Mapping[str, float], ranks: Ranks, seed: int
) -> tuple[float, dict[str, float]]:
    """Leave this rank's part of the gradient with the parameters; return loss and metrics of the whole step.

    `seed` is that of the run.
    """
    if step.totals.tokens == 0:
        raise NothingToTrain(f"step {step.index + 1} has no supervised token")
    if ranks.several:
        _own_noise(seed, step.index, ranks.rank)
    loss = torch.zeros((), dtype=torch.float64)
    parts = []
    wanted = {"entropy": objective.wants_entropy, "squares": objective.wants_squares}
    roles = objective.trained(step.index)
    for number, batch in enumerate(foresee(policy, objective, step.batches, memory, step.fillers, ranks)):
        with naming_rows(step.index + 1, batch):
            for outputs in policy.passes(batch, roles, **wanted):
                share = objective(outputs, batch, step.totals)
                if not share.loss.requires_grad:
                    raise NothingToTrain("the loss does not depend on any trainable parameter")
                if number >= len(step.batches):  # a filler
                    (0.0 * share.loss).backward()  # type: ignore[no-untyped-call]
                    continue
                share.loss.backward()  # type: ignore[no-untyped-call]
                loss += share.loss.detach().double().cpu()
                parts.append(share.metrics)
    return ranks.together(float(loss), parts)


def _own_noise(seed: int, step: int, rank: int) -> None:
    """Give each rank a dropout of its own, which depends on these alone, so that no checkpoint has to hold it."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))
