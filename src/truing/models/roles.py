"""Policy, reference, and later reward and value: who computes on a batch, over one shared base or several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from truing.core.batch import Batch, Outputs
from truing.core.trees import IntArray
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters


class Role(Protocol):
    """Something that computes log-probs of a batch's targets."""

    @property
    def noisy(self) -> bool:
        """Whether outputs with gradient differ from those without, as under dropout."""
        ...

    def outputs(self, batch: Batch, *, entropy: bool = False, squares: bool = False) -> Outputs:
        """Return log-probs of the target tokens, float32 [K]."""
        ...

    def prompt_states(self, prompts: Sequence[IntArray]) -> Tensor:
        """Return what it makes of each prompt, int32 [p]: the mean of its last hidden states, float32 [N, d]."""
        ...


@dataclass(frozen=True, slots=True)
class FullModel:
    """A role that is a whole model of its own."""

    model: LanguageModel

    @property
    def noisy(self) -> bool:
        return False

    def outputs(self, batch: Batch, *, entropy: bool = False, squares: bool = False) -> Outputs:
        return self.model.outputs(batch, entropy=entropy, squares=squares)

    def prompt_states(self, prompts: Sequence[IntArray]) -> Tensor:
        return self.model.prompt_states(prompts)


@dataclass(frozen=True, slots=True)
class AdapterOverBase:
    """A role that is one adapter over a base it shares with others; without an adapter it is the base itself."""

    model: LanguageModel
    adapters: Adapters
    adapter: str | None
    drops: bool = False
    """Whether the adapter has dropout, which acts only where a gradient is wanted."""

    @property
    def noisy(self) -> bool:
        return self.drops

    def outputs(self, batch: Batch, *, entropy: bool = False, squares: bool = False) -> Outputs:
        if self.drops:
            self.adapters.train_layers(torch.is_grad_enabled())
        with self.adapters.use(self.adapter):
            return self.model.outputs(batch, entropy=entropy, squares=squares)

    def prompt_states(self, prompts: Sequence[IntArray]) -> Tensor:
        if self.drops:
            self.adapters.train_layers(torch.is_grad_enabled())
        with self.adapters.use(self.adapter):
            return self.model.prompt_states(prompts)
