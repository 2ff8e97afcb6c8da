"""Who writes completions: the model in training, or a server that holds a copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from truing.core.samples import Sampled


class Engine(Protocol):
    """Samples from the whole next-token distribution, never from a cut one: log-probs must be those of the policy."""

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        """Write `count` completions of each prompt (token ids), in the order of the prompts.

        The same seed gives the same completions, as far as the engine can promise it.
        """
        ...
