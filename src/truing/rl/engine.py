"""Who writes the completions of a rollout: the model in training here; a server that follows it, in `following`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from truing.core.samples import Sampled
from truing.models.decoding import Choice
from truing.models.roles import Role
from truing.models.sampling import sample


class Engine(Protocol):
    """Samples from the whole next-token distribution, never from a cut one: log-probs must be those of the policy."""

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        """Write `count` completions of each prompt (token ids), in the order of the prompts.

        The same seed gives the same completions, as far as the engine can promise it.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What it measured while it sampled last, for the step's row of metrics."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class RoleEngine:
    """The policy itself, in this process."""

    role: Role
    end_tokens: frozenset[int]
    exact: bool = True
    """Whether captured log-probs are close enough to those of the update; in half precision its kernels differ too
    much, and NaN asks for them to be computed again."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        only: Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """Write completions of each prompt, or of some of them by their numbers, as they are written with the rest."""
        with torch.no_grad(), self.role.active():
            groups = sample(
                self.role.model,
                prompts,
                count=count,
                max_new_tokens=max_new_tokens,
                choice=Choice(temperature),
                seed=seed,
                end_tokens=self.end_tokens,
                only=only,
            )
        if self.exact:
            return groups
        return [[replace(row, logprobs=np.full_like(row.logprobs, np.nan)) for row in group] for group in groups]

    def figures(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing to let go of."""
