"""Who trains a stage together, and whether each has a copy of the weights or they share one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from truing.core.errors import RecipeError
from truing.models.cuts import gathered
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters
from truing.models.lora.settings import AdapterSettings
from truing.recipe.schema import Stage
from truing.training.dealing import Dealer
from truing.training.ranks import ALONE, Ranks

COMFORTABLE = 0.5
"""Share of a process's memory up to which it has a copy of its own: the rest is for activations."""

T = TypeVar("T")


@dataclass(eq=False)
class Company:
    """All ranks of a run, and the models that they have cut over each other."""

    device: torch.device
    ranks: Ranks = ALONE
    shard: int = 1
    """Ranks that share a copy of the weights."""
    cut: list[LanguageModel] = field(default_factory=list)

    @property
    def cuts(self) -> bool:
        """Whether weights are cut over ranks."""
        return self.shard > 1

    @property
    def loads_on(self) -> torch.device:
        """Where models are read to: what is to be cut need never be whole on a device."""
        return torch.device("cpu") if self.cuts else self.device

    @property
    def dealer(self) -> Dealer:
        """Who shares the work out."""
        return Dealer(self.ranks, self.cuts)

    @property
    def sentence(self) -> str:
        """What a person is told of it."""
        world = self.ranks.world
        if not self.cuts:
            return f"{world} processes, each with a copy of the weights"
        copies = world // self.shard
        return f"{world} processes that share {'one copy' if copies == 1 else f'{copies} copies'} of the weights"

    def share(self, model: LanguageModel, adapters: Adapters | None, dtype: torch.dtype) -> None:
        """Cut a model, where weights are cut, and it is not yet; everything that belongs to it has to be in place."""
        if not self.cuts or model in self.cut:
            return
        from truing.models.sharding import make_mesh, shard

        shard(model, adapters, make_mesh(self.device, self.ranks.world, self.shard), dtype)
        self.cut.append(model)

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights on every rank meanwhile."""
        if not self.cut:
            return nullcontext()
        from truing.models.sharding import whole

        return whole(self.cut)

    def by_first(self, measure: Callable[..., T]) -> Callable[..., T]:
        """Let the first rank measure, with all weights at hand, and all ranks get what it finds, as JSON."""
        if not self.ranks.several:
            return measure

        def asked(*args: Any) -> T:
            with self.whole():
                found = measure(*args) if self.ranks.first else None
            answer: T = self.ranks.from_first(found)
            return answer

        return asked

    def put_together(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Whole tensors on the first rank, on its CPU where they were cut; nothing on the others."""
        if self.cuts:
            return gathered(tensors, keep=self.ranks.first)
        return tensors if self.ranks.first else {}

    def holds_whole(self) -> bool:
        """Whether every rank has room for all weights beside what it holds now."""
        if self.device.type != "cuda" or not self.cut:
            return True
        needed = sum(p.numel() * p.element_size() for model in self.cut for p in model.module.parameters())
        free, _ = torch.cuda.mem_get_info(self.device)
        return bool(min(self.ranks.everyone(free)) > needed)


def choose_shard(stage: Stage, ranks: Ranks, device: torch.device, module: nn.Module) -> int:
    """How many ranks share a copy of the weights, as the recipe asks or as memory suggests.

    Raises RecipeError where the ranks cannot be divided so.
    """
    asked = stage.parallel.shard
    if asked == "auto":
        return int(ranks.from_first(1 if _is_comfortable(stage, ranks, device, module) else ranks.world))
    shard = ranks.world if asked == "all" else min(asked, ranks.world)
    if ranks.world % shard:
        raise RecipeError(
            f"parallel.shard is {shard}, which does not divide the {ranks.world} processes; give 1, all, or a divisor"
        )
    if shard > 1 and (whole := _needs_whole(stage.adapter)) is not None:
        raise RecipeError(f"{whole} needs whole weights on each process; set parallel.shard: 1")
    return shard


def _needs_whole(adapter: AdapterSettings | None) -> str | None:
    """What in an adapter's settings keeps the weights under it from being cut."""
    if adapter is None:
        return None
    if adapter.base is not None:
        return f"adapter.base: {adapter.base}"
    return "adapter.init: pissa" if adapter.init == "pissa" else None


def _is_comfortable(stage: Stage, ranks: Ranks, device: torch.device, module: nn.Module) -> bool:
    if _needs_whole(stage.adapter) is not None:
        return True
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    numbers = sum(p.numel() for p in module.parameters())
    masters = 4 * numbers if weights < 4 * numbers else 0
    moved = 0 if stage.adapter is not None else 12 * numbers + masters  # a gradient and two moments, all float32
    return weights + moved <= COMFORTABLE * _memory(ranks, device)


def _memory(ranks: Ranks, device: torch.device) -> float:
    """Bytes that one process may use."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks.beside
