"""An engine on a server that follows the policy, and the proof that it does: its log-probs beside the policy's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from truing.core.errors import InputError, OffPolicy
from truing.core.samples import Sampled
from truing.core.trees import Completion, Tree
from truing.rl.completion_server import CompletionServer
from truing.rl.served_policy import ServedPolicy

COMPLETIONS = 32
"""Drawn after each update of the server, to be compared."""
TOKENS = 32
"""Of each of them at most."""
BEHIND = 0.25
"""Of the way, below which a server has not followed. Where rounding outweighs the policy's change, the slope of one
that follows tends to ½, for the start's rounding is in both differences; ¼ lets the policy's own be twice that."""
DEVIATIONS = 6.0
"""Standard errors that make a finding evident: there is a test for each rollout of a run."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """Log-probs of the same tokens, float64 [n]."""

    policy: Float
    start: Float
    """Of the stage's reference."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a server's log-probs of its own samples stand to the policy's and to those of the policy's start."""

    gap: float
    """Mean of absolute differences to the policy's, nats a token."""
    way: float
    """Where the server is on the way from the start (0) to the policy (1): the slope of its differences to the start's
    log-probs on the policy's. NaN where policy and start do not differ."""
    error: float
    """Standard error of `way`."""

    @classmethod
    def of(cls, server: Float, known: Known) -> Agreement:
        """Compare log-probs of the same tokens; at least one."""
        gap = float(np.abs(server - known.policy).mean())
        moved, seen = known.policy - known.start, server - known.start
        size = float(moved @ moved)
        if size == 0.0:
            return cls(gap, float("nan"), float("nan"))
        way = float(seen @ moved) / size
        rest = seen - way * moved
        return cls(gap, way, float(np.sqrt((rest @ rest) / len(rest) / size)))

    @property
    def stays_behind(self) -> bool:
        """Whether the server evidently has the start's weights, or is much nearer to them than to the policy's."""
        return bool(self.way + DEVIATIONS * self.error < BEHIND)


@dataclass(eq=False)
class FollowingServer:
    """Samples from a server that is brought up to date before each rollout.

    Its samples carry no log-probs: those of an update are the policy's own, computed here, so that its ratio begins at
    1 whatever the server's arithmetic. The server's are compared with them each time that the policy has moved, on a
    few completions drawn at temperature 1. Raises OffPolicy where they cannot be of the same weights.
    """

    server: CompletionServer
    served: ServedPolicy
    known: Callable[[Sequence[Tree]], Known]
    """Log-probs at temperature 1 of the completions of trees, one after the other."""
    most: float
    """Nats a token that the two may differ by."""
    _figures: dict[str, float] = field(default_factory=dict)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, count: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Sampled]]:
        if self.served.update():
            self._compare(prompts, min(max_new_tokens, TOKENS), seed)
        groups = self.server.sample(
            prompts, count=count, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        return [[replace(row, logprobs=np.full_like(row.logprobs, np.nan)) for row in group] for group in groups]

    def figures(self) -> dict[str, float]:
        return dict(self._figures)

    def close(self) -> None:
        self.served.close()

    def _compare(self, prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> None:
        few = prompts[:COMPLETIONS]
        each = -(-COMPLETIONS // len(few))
        groups = self.server.sample(few, count=each, max_new_tokens=tokens, temperature=1.0, seed=seed)
        theirs = np.concatenate([row.logprobs for group in groups for row in group]).astype(np.float64)
        if not np.isfinite(theirs).all():
            raise InputError(
                f"{self.server.settings.url}: gave no log-probs of its samples, by which it is seen that they are the "
                "policy's; use a vLLM that knows `return_token_ids`"
            )
        found = Agreement.of(theirs, self.known([_tree(p, group) for p, group in zip(few, groups, strict=True)]))
        self._figures = {"rollout/logprob_gap": found.gap}
        self._judge(found)

    def _judge(self, found: Agreement) -> None:
        url = self.server.settings.url
        if found.stays_behind:
            raise OffPolicy(
                f"{url} samples from the weights that the stage began with, not from the policy's: its "
                f"log-probs have gone {found.way:.0%} of the policy's way, and the last update was not taken over. "
                "Should several servers stand behind the address, give that of one; should it be one, look into its "
                "log. Resume goes on from the last checkpoint"
            )
        if found.gap > self.most:
            raise OffPolicy(
                f"{url} samples from other weights than the policy's: its log-probs differ from the policy's "
                f"own by {found.gap:.3f} nats a token, more than rollout.server.logprob_gap {self.most:g}. "
                "Serve the very model that the stage begins with, neither another nor a quantised one, and in the "
                "precision of the training (--dtype)"
            )


def _tree(prompt: Sequence[int], rows: Sequence[Sampled]) -> Tree:
    completions = tuple(Completion(row.tokens, np.ones(len(row.tokens), dtype=np.bool_)) for row in rows)
    return Tree(np.asarray(prompt, dtype=np.int32), completions)
