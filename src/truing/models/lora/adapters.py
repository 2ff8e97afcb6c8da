"""Several named adapters over one frozen model, of which one or none is active."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from truing.core.errors import AdapterError, suggest
from truing.core.parameters import ParameterGroup
from truing.models.lora.layers import KINDS, AdaptedLinear, LayerPlan, LowRank, Selection, adapt, sides
from truing.models.lora.settings import AdapterSettings
from truing.models.lora.targets import linear_layers, select_saved, select_targets
from truing.models.nf4 import PackedLinear, PackedWeight, unpack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What an adapter turned out to be on this model."""

    layers: tuple[str, ...]
    saved: tuple[str, ...]
    parameters: int
    notes: tuple[str, ...]
    """Sentences that a person should read."""


class Adapters:
    """The adapters of one model, by name.

    The model's own parameters are frozen for as long as this object is in charge. Layers are replaced by ones that
    share their parameters, so paths and state-dict keys of the base stay the same. Put the model on its device first.
    """

    def __init__(self, model: PreTrainedModel):
        if any(isinstance(module, AdaptedLinear) for module in model.modules()):
            raise AdapterError("the model already has adapters; use the object that put them there, or unload it first")
        self.model = model
        self._selection = Selection()
        self._settings: dict[str, AdapterSettings] = {}
        self._saved: dict[str, dict[str, nn.Module]] = {}  # adapter → path → its own copy of that module
        self._displaced: dict[str, nn.Module] = {}  # path → the base module that the active adapter's copy stands for
        self._trainable_before = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        model.requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, oldest first."""
        return tuple(self._settings)

    @property
    def active(self) -> str | None:
        """The adapter that runs, or None for the base alone."""
        return self._selection.name

    def settings(self, name: str) -> AdapterSettings:
        """The settings that an adapter was made with."""
        self._require(name)
        return self._settings[name]

    def add(self, name: str, settings: AdapterSettings, *, seed: int) -> AdapterSummary:
        """Put a new trainable adapter in place, without making it the active one.

        The same seed gives the same start on every device; the global random state is left alone.
        """
        self._require_new(name)
        with self.use(None):
            saved = select_saved(self.model, settings.modules_to_save)
            paths = select_targets(self.model, settings.targets, settings.exclude, saved)
        plan = dict.fromkeys(paths, LayerPlan(settings.rank, settings.effective_alpha))
        return self.attach(name, settings, plan, saved, seed=seed)

    def attach(
        self, name: str, settings: AdapterSettings, plan: Mapping[str, LayerPlan], saved: Sequence[str], *, seed: int
    ) -> AdapterSummary:
        """Put a new trainable adapter on exactly these layers, with these sizes."""
        self._require_new(name)
        generator = torch.Generator().manual_seed(seed)
        with self.use(None):
            notes = _notes(self.model, settings, plan, saved)
            copies = {path: plain_copy(self.model.get_submodule(path)) for path in saved}
            for path, size in plan.items():
                layer = self._adapted(path)
                layer.adapters[name] = KINDS[settings.init, settings.dora](layer, size, settings, generator)
                layer.adapters[name].train(layer.training)
        self._settings[name], self._saved[name] = settings, copies
        self.set_trainable(name, True)
        count = sum(p.numel() for p in self.parameters(name).values())
        return AdapterSummary(tuple(plan), tuple(saved), count, notes)

    def copy(self, source: str, name: str) -> None:
        """Add a frozen copy of an adapter, as a reference for the one that goes on training."""
        self._require(source)
        self._require_new(name)
        for layer in self._layers_of(source).values():
            layer.adapters[name] = copy.deepcopy(layer.adapters[source])
        self._saved[name] = {path: copy.deepcopy(module) for path, module in self._saved[source].items()}
        self._settings[name] = self._settings[source]
        self.set_trainable(name, False)

    @torch.no_grad()
    def overwrite(self, source: str, name: str) -> None:
        """Give an adapter the numbers that another of the same shape has now."""
        numbers = self.parameters(source)
        for key, parameter in self.parameters(name).items():
            parameter.copy_(numbers[key])

    def switch(self, name: str | None) -> None:
        """Make an adapter the active one, or None for the base alone; its saved modules come and go with it."""
        if name is not None:
            self._require(name)
        if name == self.active:
            return
        for path, base in self._displaced.items():
            self.model.set_submodule(path, base.train(self.model.get_submodule(path).training))
        self._displaced.clear()
        for path, own in self._saved.get(name, {}).items() if name is not None else ():
            self._displaced[path] = self.model.get_submodule(path)
            self.model.set_submodule(path, own.train(self._displaced[path].training))
        self._selection.name = name

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Run with another adapter, or with the base alone, and return to the one that was active."""
        before = self.active
        self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` for gradient checkpointing: recompute with the adapter that was active in the forward pass.

        Without it, a backward pass that runs after another adapter was switched on recomputes with that one.
        """
        return nullcontext(), self.use(self.active)

    def layers(self, name: str) -> dict[str, LowRank]:
        """An adapter's low-rank layers by module path, in model order."""
        return {path: cast("LowRank", layer.adapters[name]) for path, layer in self._layers_of(name).items()}

    def saved_modules(self, name: str) -> Mapping[str, nn.Module]:
        """An adapter's own copies of whole modules, by module path."""
        self._require(name)
        return self._saved[name]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """All parameters of an adapter, by names that do not contain the adapter's."""
        found = {
            f"{path}.{key}": cast("nn.Parameter", tensor)
            for path, low_rank in self.layers(name).items()
            for key, tensor in low_rank.tensors().items()
        }
        for path, module in self.saved_modules(name).items():
            found |= {f"{path}.{key}": parameter for key, parameter in module.named_parameters()}
        return found

    def set_trainable(self, name: str, trainable: bool) -> None:
        """Let an adapter's parameters collect gradients, or freeze them; frozen ones never apply dropout."""
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(trainable)

    def parameter_groups(self, name: str, lr: float) -> tuple[ParameterGroup, ...]:
        """Parameters by learning rate: B learns `lr_ratio` times as fast as the rest (LoRA+, arXiv:2402.12354)."""
        ratio, parameters = self.settings(name).lr_ratio, self.parameters(name)
        if ratio == 1.0:
            return (ParameterGroup(parameters, lr),)
        fast = {key: p for key, p in parameters.items() if key.endswith(".lora_B.weight")}
        slow = {key: p for key, p in parameters.items() if key not in fast}
        return ParameterGroup(slow, lr), ParameterGroup(fast, lr * ratio)

    def train_layers(self, mode: bool = True) -> None:
        """Turn adapter dropout on or off, while the model itself stays in the mode it is in."""
        for name in self.names:
            for low_rank in self.layers(name).values():
                low_rank.train(mode)

    def merge(self, name: str) -> None:
        """Write an adapter into the base weights, in float32, and remove it.

        Refused while there are other adapters: they were trained over the base as it is. A packed base is unpacked.
        """
        self._require(name)
        others = [other for other in self.names if other != name]
        if others:
            raise AdapterError(f"cannot merge '{name}' under {others}, which belong to the base as it is; remove them")
        self._unpack()
        for path, low_rank in self.layers(name).items():
            layer = self._adapted(path)
            with torch.no_grad():
                layer.set_matrix(low_rank.adapted_weight(layer.matrix()))
        copies = self._saved[name]
        self.remove(name)
        for path, module in copies.items():
            self.model.set_submodule(path, module.requires_grad_(False))
        _untie(self.model)

    def remove(self, name: str) -> None:
        """Forget an adapter; if it was active, the base alone is."""
        layers = self._layers_of(name)
        if self.active == name:
            self.switch(None)
        for layer in layers.values():
            del layer.adapters[name]
        del self._settings[name], self._saved[name]

    def unload(self) -> None:
        """Forget all adapters and put the plain layers back; what could be trained before can be again."""
        for name in self.names:
            self.remove(name)
        for path, module in list(self.model.named_modules()):
            if isinstance(module, AdaptedLinear):
                self.model.set_submodule(path, module.plain().train(module.training))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable_before)

    def _unpack(self) -> None:
        """Store a packed base in full, layer by layer, as weights that are to be changed have to be."""
        for path, layer in list(self.model.named_modules()):
            if isinstance(layer, AdaptedLinear) and isinstance(layer.weight, PackedWeight):
                whole = adapt(cast("PackedLinear", layer.plain()).unpacked(), self._selection)
                whole.adapters = layer.adapters
                self.model.set_submodule(path, whole)
        unpack(self.model)

    def _layers_of(self, name: str) -> dict[str, AdaptedLinear]:
        self._require(name)
        with self.use(None):
            layers = linear_layers(self.model)
        return {p: layer for p, layer in layers.items() if isinstance(layer, AdaptedLinear) and name in layer.adapters}

    def _adapted(self, path: str) -> AdaptedLinear:
        module = self.model.get_submodule(path)
        if not isinstance(module, AdaptedLinear):
            module = adapt(module, self._selection)
            self.model.set_submodule(path, module)
        return module

    def _require(self, name: str) -> None:
        if name not in self._settings:
            raise AdapterError(f"there is no adapter '{name}'{suggest(name, self._settings)}")

    def _require_new(self, name: str) -> None:
        if name in self._settings:
            raise AdapterError(f"there already is an adapter '{name}'; choose another name or remove it first")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in dir(nn.ModuleDict):
            raise AdapterError(f"'{name}' cannot name an adapter; use letters, digits, '-' and '_', as in 'policy'")


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of a base module without the adapters that others have put into it, and not packed."""
    if isinstance(module, AdaptedLinear):
        return plain_copy(module.plain())
    if isinstance(module, PackedLinear):
        return copy.deepcopy(module.unpacked())
    twin = copy.deepcopy(module)
    for path, inner in list(twin.named_modules()):
        if isinstance(inner, AdaptedLinear):
            twin.set_submodule(path, inner.plain())
    unpack(twin)
    return twin


def _notes(
    model: PreTrainedModel, settings: AdapterSettings, plan: Mapping[str, LayerPlan], saved: Sequence[str]
) -> tuple[str, ...]:
    notes = []
    wide = [path for path, size in plan.items() if size.rank > min(sides(model.get_submodule(path)))]
    if wide:
        notes.append(
            f"rank {settings.rank} is larger than the smallest side of {len(wide)} layers (the first is {wide[0]}); "
            "a smaller rank would do the same for less"
        )
    solid = [path for path, parameter in model.base_model.named_parameters() if parameter.ndim == 3]
    if solid:
        notes.append(
            f"{len(solid)} weights are not linear layers (experts, convolutions) and stay frozen, {solid[0]} first"
        )
    for path in saved:
        parameters = list(model.get_submodule(path).parameters())
        narrow = next((p.dtype for p in parameters if p.dtype in (torch.bfloat16, torch.float16)), None)
        if narrow is not None:
            notes.append(f"'{path}' is trained whole in {narrow}, where small updates are lost to rounding")
        if _tied_elsewhere(model, path, parameters):
            notes.append(f"'{path}' shares its weight with another module; the trained copy no longer does")
    return tuple(notes)


def _tied_elsewhere(model: nn.Module, path: str, parameters: Sequence[Tensor]) -> bool:
    inside = {id(parameter) for parameter in parameters}
    others = (p for name, p in model.named_parameters(remove_duplicate=False) if not name.startswith(f"{path}."))
    return any(id(parameter) in inside for parameter in others)


def _untie(model: PreTrainedModel) -> None:
    """Say in the config that head and embeddings differ, where they now do; saving would drop one of them."""
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
