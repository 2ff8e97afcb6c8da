"""Policy, reference, reward and value: who computes on a batch, over one shared base or several models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from truing.core.batch import Batch, Outputs
from truing.core.trees import IntArray
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters


class Trained(Protocol):
    """What a trainer moves: it computes on a batch in one or several passes, each differentiated by itself."""

    @property
    def noisy(self) -> bool:
        """Whether outputs with gradient differ from those without, as under dropout."""
        ...

    def passes(
        self, batch: Batch, roles: Sequence[str], *, entropy: bool = False, squares: bool = False
    ) -> Iterator[Outputs]:
        """Yield outputs of the named roles; the next pass begins when the last one's graph may be gone."""
        ...


class Role(ABC):
    """One model, or one adapter of a model that others use too."""

    model: LanguageModel
    temperature: float
    """That of the distribution whose log-probs it gives."""

    @property
    @abstractmethod
    def noisy(self) -> bool:
        """Whether outputs with gradient differ from those without, as under dropout."""

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Have the model be this role meanwhile."""

    @abstractmethod
    def at(self, temperature: float) -> Role:
        """Return the same role, giving log-probs at another temperature."""

    def outputs(self, batch: Batch, *, entropy: bool = False, squares: bool = False) -> Outputs:
        """Return log-probs of the target tokens, float32 [K]; scores of the completions where it is a reward model."""
        with self.active():
            return self.model.outputs(batch, entropy=entropy, squares=squares, temperature=self.temperature)

    def passes(
        self, batch: Batch, roles: Sequence[str], *, entropy: bool = False, squares: bool = False
    ) -> Iterator[Outputs]:
        """Yield its outputs, in one pass."""
        yield self.outputs(batch, entropy=entropy, squares=squares)

    def scores(self, batch: Batch) -> Tensor:
        """Return the score head's word on each completion, float32 [C]."""
        with self.active():
            return self.model.completion_scores(batch)

    def values(self, batch: Batch) -> Tensor:
        """Return the score head's word before each target token, float32 [K]."""
        with self.active():
            return self.model.token_values(batch)

    def prompt_states(self, prompts: Sequence[IntArray]) -> Tensor:
        """Return what it makes of each prompt, int32 [p]: the mean of its last hidden states, float32 [N, d]."""
        with self.active():
            return self.model.prompt_states(prompts)


@dataclass(frozen=True, slots=True)
class FullModel(Role):
    """A role that is a whole model of its own."""

    model: LanguageModel
    temperature: float = 1.0

    @property
    def noisy(self) -> bool:
        return False

    def at(self, temperature: float) -> FullModel:
        return replace(self, temperature=temperature)

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, slots=True)
class AdapterOverBase(Role):
    """A role that is one adapter over a base it shares with others; without an adapter it is the base itself."""

    model: LanguageModel
    adapters: Adapters
    adapter: str | None
    drops: bool = False
    """Whether the adapter has dropout, which acts only where a gradient is wanted."""
    temperature: float = 1.0

    @property
    def noisy(self) -> bool:
        return self.drops

    def at(self, temperature: float) -> AdapterOverBase:
        return replace(self, temperature=temperature)

    @contextmanager
    def active(self) -> Iterator[None]:
        if self.drops:
            self.adapters.train_layers(torch.is_grad_enabled())
        with self.adapters.use(self.adapter):
            yield


@dataclass(frozen=True, slots=True)
class ActorCritic:
    """A policy and the critic trained beside it, one after the other, so that one graph exists at a time."""

    policy: Role
    value: Role

    @property
    def noisy(self) -> bool:
        return self.policy.noisy or self.value.noisy

    def passes(
        self, batch: Batch, roles: Sequence[str], *, entropy: bool = False, squares: bool = False
    ) -> Iterator[Outputs]:
        """Yield the policy's log-probs, then the critic's values, of those roles that are named."""
        if "policy" in roles:
            yield self.policy.outputs(batch, entropy=entropy, squares=squares)
        if "value" in roles:
            yield Outputs(torch.zeros(0, device=batch.tokens.device), values=self.value.values(batch))
