"""One copy of a model's weights over several devices, by torch's `fully_shard` (FSDP2).

Each decoder layer is a unit, and what is left (embeddings, last norm, heads) is another, whose forward pass is the
whole computation of log-probs or scores. With gradient, all ranks of a copy make the same passes in the same order.
Without, a model can be made whole for a while; then every rank computes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from truing.core.errors import ModelError
from truing.models.language_model import LanguageModel
from truing.models.lora.adapters import Adapters
from truing.models.lora.layers import AdaptedLinear

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Door(nn.Module):
    """The unit of all that is in no layer: whatever is computed inside its forward pass finds the weights whole."""

    def __init__(self, module: nn.Module, beside: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module = module
        self.beside = nn.ModuleList(beside)

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        """Compute; tensors have to come back bare or in tuples, where torch finds those that need a gradient."""
        found = compute(*args)
        return found.clone() if isinstance(found, Tensor) else found  # torch wants no view, which scores are


def make_mesh(device: torch.device, world: int, shard: int) -> DeviceMesh:
    """Lay all ranks out as copies of `shard` ranks each."""
    from torch.distributed.device_mesh import init_device_mesh

    if shard == world:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world // shard, shard), mesh_dim_names=("replicate", "shard"))


def shard(model: LanguageModel, adapters: Adapters | None, mesh: DeviceMesh, compute: torch.dtype) -> None:
    """Cut a model over the ranks of a mesh and move it to their devices; its parameters are new objects afterwards.

    Trained weights are kept in float32 and computed with in `compute`; gradients are summed in float32. Frozen ones,
    and adapters, which are float32 already, stay as they are.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    _refuse_uneven_passes(model)
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    if adapters is None and any(parameter.requires_grad for parameter in model.module.parameters()):
        precision = MixedPrecisionPolicy(compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    beside = [] if adapters is None else [m for n in adapters.names for m in adapters.saved_modules(n).values()]
    layers: list[FSDPModule] = []
    for layer in decoder_layers(model.module):
        _widen(layer)
        layers.append(fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=True))
    door = Door(model.module, beside)
    _widen(door)
    root = fully_shard(door, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    for unit, before in zip((*layers, root), (root, *layers), strict=True):
        unit.set_gradient_divide_factor(1.0)  # an objective's shares add up to the step's loss
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        # By itself torch fetches in the order of all passes since the last gradient, which not every rank has made.
        unit.set_modules_to_backward_prefetch([before])
    for part in door.modules():
        if isinstance(part, AdaptedLinear):
            part.plain()  # it would hold on to the whole weight
    door(tuple)  # the first pass makes it the root, which no layer may become
    model.enter_by(door)


@contextmanager
def whole(models: Iterable[LanguageModel]) -> Iterator[None]:
    """Have all weights of some models on every rank meanwhile, without gradients; all ranks enter and leave together.

    Whoever computes then needs no other rank.
    """
    from torch.distributed.fsdp import FSDPModule

    doors = [model.door for model in models if model.door is not None]
    units = [part for door in doors for part in door.modules() if isinstance(part, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        with torch.no_grad():
            yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a model: its list of modules that holds most parameters."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(module).__name__} has no list of layers to cut it by; set parallel.shard: 1")
    largest = max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))
    return list(largest.children())


def _widen(part: nn.Module) -> None:
    """Keep trained weights in float32; those of units that are cut already are."""
    for parameter in part.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _refuse_uneven_passes(model: LanguageModel) -> None:
    if model.sharing == "alone":
        raise ModelError(
            f"{type(model.module).__name__} runs each sequence by itself, which weights that are cut over devices do "
            "not allow; set parallel.shard: 1"
        )
