"""Which modules of a model an adapter applies to, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from truing.core.errors import AdapterError, suggest
from truing.models.lora.layers import AdaptedLinear
from truing.models.lora.settings import matches
from truing.models.nf4 import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers whose numbers are known, adapted and packed ones included, by path in model order."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, AdaptedLinear | PackedLinear)
        or (isinstance(module, nn.Linear | Conv1D) and module.weight.is_floating_point())
    }


def module_paths(model: nn.Module) -> list[str]:
    """Paths of the base's modules in model order, without what adapters have added."""
    added = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, AdaptedLinear))
    return [path for path, _ in model.named_modules() if path and not path.startswith(added)]


def outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths that lie inside no other of them."""
    return tuple(path for path in paths if not _inside(path, (other for other in paths if other != path)))


def output_head(model: PreTrainedModel) -> str | None:
    """Path of the projection to the vocabulary."""
    head = model.get_output_embeddings()
    return next((path for path, module in model.named_modules() if module is head), None) if head is not None else None


def select_targets(
    model: PreTrainedModel, targets: str | Sequence[str], exclude: Iterable[str], saved: Iterable[str]
) -> tuple[str, ...]:
    """Paths of the linear layers to adapt, in model order; `saved` modules are trained whole, so never adapted.

    Raises `AdapterError` for a target that matches no linear layer, and for one that matches the output head.
    """
    head, layers = output_head(model), linear_layers(model)
    patterns = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: set[str] = set()
    for pattern in patterns:
        found = body_layers(model) if pattern == ALL_LINEAR else {path for path in layers if matches(pattern, path)}
        if not found:
            raise _matches_nothing(pattern, model, layers)
        chosen |= found
    chosen -= {path for path in chosen if any(matches(pattern, path) for pattern in exclude) or _inside(path, saved)}
    if head is not None and head in chosen:
        raise AdapterError(
            f"adapter.targets: {list(patterns)} matches the output head '{head}', where a low-rank adapter has no "
            f"effect; add '{head}' to adapter.exclude, or train it whole with adapter.modules_to_save"
        )
    if not chosen:
        raise AdapterError(f"adapter.exclude: {list(exclude)} leaves none of the layers that adapter.targets matches")
    return tuple(path for path in layers if path in chosen)


def select_saved(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Paths of the modules to train whole, in model order; `AdapterError` for a name that matches none."""
    paths = module_paths(model)
    chosen: set[str] = set()
    for name in names:
        found = {path for path in paths if matches(name, path)}
        if not found:
            last = {path.rpartition(".")[2] for path in paths}
            raise AdapterError(
                f"adapter.modules_to_save: '{name}' matches no module of the model"
                f"{suggest(name, (part for part in last if not part.isdigit()))}"
            )
        chosen |= found
    return outermost([path for path in paths if path in chosen])


def body_layers(model: PreTrainedModel) -> set[str]:
    """Paths of the linear layers of the model without its heads."""
    body, head = model.base_model, output_head(model)
    prefix = next(path for path, module in model.named_modules() if module is body)
    return {path for path in linear_layers(model) if path != head and (not prefix or path.startswith(f"{prefix}."))}


def shortest_targets(model: nn.Module, paths: Sequence[str], saved: Sequence[str]) -> tuple[str, ...]:
    """Names that match exactly `paths`: the last parts where those suffice, else the paths themselves."""
    last = sorted({path.rpartition(".")[2] for path in paths})
    hit = {
        path for path in module_paths(model) if any(matches(name, path) for name in last) and not _inside(path, saved)
    }
    return tuple(last) if hit == set(paths) else tuple(paths)


def _inside(path: str, outer: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in outer)


def _matches_nothing(pattern: str, model: nn.Module, layers: dict[str, nn.Module]) -> AdapterError:
    names = sorted({path.rpartition(".")[2] for path in layers})
    other = sum(matches(pattern, path) for path in module_paths(model))
    what = f"matches {other} modules, none of them linear" if other else "matches no module of the model"
    return AdapterError(
        f"adapter.targets: '{pattern}' {what}; expected 'all-linear', an 're:' expression for whole paths, or the end "
        f"of the path of a linear layer, one of: {', '.join(names)}"
    )
