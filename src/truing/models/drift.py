"""How far a model has moved on a text: its loss, and the divergence from an earlier self at some positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.core.batch import Batch
from truing.models.language_model import LanguageModel, evaluating


def text_loss(
    model: LanguageModel,
    batches: Sequence[Batch],
    places: Tensor,  # int64 [n], ascending, indices into the targets of all batches end to end
    visit: Callable[[Tensor], None],
) -> float:
    """Mean −log p of all targets in nats a token; `visit` is given the distributions that predict some of them.

    They come in order, log-probs of the whole vocabulary, float32 [k, V] with small k.
    """
    total, done = 0.0, 0
    with torch.no_grad(), evaluating(model.module):
        for batch in batches:
            here = places[(places >= done) & (places < done + batch.num_targets)] - done
            logprobs, distributions = model.with_distributions(batch, here.to(batch.tokens.device))
            total -= float(logprobs.double().sum())
            for rows in distributions:
                visit(rows)
            done += batch.num_targets
    return total / done


def kl(start: Tensor, now: Tensor) -> Tensor:
    """KL(start ‖ now) = Σ p_start (log p_start − log p_now) of each row, from log-probs [k, V]: float64 [k], nats."""
    return F.kl_div(now, start, reduction="none", log_target=True).sum(dim=-1, dtype=torch.float64)


def evenly(count: int, most: int) -> Tensor:
    """At most so many of `count` places, evenly spaced, each in the middle of its share: int64 [n].

    >>> evenly(10, 2).tolist(), evenly(3, 5).tolist()
    ([2, 7], [0, 1, 2])
    """
    n = min(count, most)
    return (2 * torch.arange(n) + 1) * count // (2 * max(n, 1))
