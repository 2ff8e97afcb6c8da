"""Adapters as PEFT folders, both ways: what is written here loads in `peft` with the same outputs, and back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from truing.core.errors import AdapterError
from truing.models.lora.adapters import Adapters, AdapterSummary, plain_copy
from truing.models.lora.layers import LayerPlan, LowRank, PissaLowRank, sides, turned
from truing.models.lora.peft_config import AUTOMATIC_HEADS, CONFIG_FILE, PeftConfig, read_config
from truing.models.lora.settings import AdapterSettings
from truing.models.lora.targets import (
    body_layers,
    linear_layers,
    module_paths,
    outermost,
    output_head,
    shortest_targets,
)

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
"""What peft puts before a module's path."""
SHOWN = 5
"""Keys that an error lists before it says how many more there are."""


@dataclass(frozen=True, slots=True)
class _PlainLayer:
    """A layer's adapter as plain LoRA."""

    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]


def adapter_tensors(adapters: Adapters, name: str) -> dict[str, Tensor]:
    """What `save_adapter` writes, by the names in the file."""
    layers = _plain_layers(adapters, name)
    tensors = {f"{PREFIX}{path}.{key}": t for path, layer in layers.items() for key, t in layer.tensors.items()}
    for path, module in adapters.saved_modules(name).items():
        tensors |= {f"{PREFIX}{path}.{key}": tensor for key, tensor in module.state_dict().items()}
    return tensors


def save_adapter(
    adapters: Adapters, name: str, folder: Path, base_model: str, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; `base_model` is the path or id it belongs to.

    Base weights are never written. A PiSSA adapter is written as the equivalent plain LoRA of twice the rank over the
    original base, so that a reader needs neither the decomposition nor a changed base. `tensors` are, by default, those
    of `adapter_tensors`.
    """
    tensors = adapter_tensors(adapters, name) if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses tensors that share memory, as tied modules would.
    written = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(written, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = _written_config(adapters, name, _plain_layers(adapters, name), base_model)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def written_sizes(adapters: Adapters, name: str) -> frozenset[tuple[int, float]]:
    """Every rank and alpha that a layer of an adapter has in a folder."""
    settings = adapters.settings(name)
    layers = [_plain(low_rank, settings) for low_rank in adapters.layers(name).values()]
    return frozenset((layer.rank, layer.alpha) for layer in layers)


def load_adapter(
    adapters: Adapters,
    name: str,
    folder: Path,
    *,
    training: AdapterSettings | None = None,
    also_saved: Sequence[str] = (),
) -> AdapterSummary:
    """Add a trainable adapter read from a PEFT folder, without making it the active one.

    `training` is what a recipe says: dropout, learning-rate ratio, the base's storage and what becomes of the adapter
    between stages are taken from it, the shape from the folder. `also_saved` are paths of modules that the adapter
    shall train whole from now on; where the folder has none of them they begin as the base's. Raises `AdapterError` for
    a setting that is not supported, for a key that matches nothing or is missing, for a wrong shape, and where there is
    nothing but a pickle. Nothing is added then.
    """
    config = read_config(folder)
    with adapters.use(None):
        plan, saved = _plan(adapters, config, folder)
        expected = _expected_shapes(adapters, config, plan, saved)
    tensors = _read_weights(folder)
    _check(tensors, expected, folder)
    saved = (*saved, *(path for path in also_saved if path not in saved))
    settings = _settings(adapters, config, plan, saved, folder)
    notes = _differences(settings, training, folder)
    if training is not None:
        kept = {key: getattr(training, key) for key in ("dropout", "lr_ratio", "base", "start", "between_stages")}
        settings = settings.model_copy(update=kept)
    summary = adapters.attach(name, settings, plan, saved, seed=0)
    _fill(adapters, name, tensors)
    return AdapterSummary(summary.layers, summary.saved, summary.parameters, (*notes, *summary.notes))


def _plain_layers(adapters: Adapters, name: str) -> dict[str, _PlainLayer]:
    settings = adapters.settings(name)
    return {path: _plain(low_rank, settings) for path, low_rank in adapters.layers(name).items()}


def _plain(low_rank: LowRank, settings: AdapterSettings) -> _PlainLayer:
    if not isinstance(low_rank, PissaLowRank):
        return _PlainLayer(low_rank.rank, low_rank.alpha, low_rank.tensors())
    lora_a, lora_b = low_rank.factors()
    rank = 2 * low_rank.rank
    # The scale must stay what it was: alpha / r, or alpha / √r.
    alpha = low_rank.alpha * (2**0.5 if settings.rslora else 2.0)
    return _PlainLayer(rank, alpha, {"lora_A.weight": lora_a, "lora_B.weight": lora_b})


def _written_config(
    adapters: Adapters, name: str, layers: Mapping[str, _PlainLayer], base_model: str
) -> dict[str, Any]:
    settings, saved = adapters.settings(name), list(adapters.saved_modules(name))
    rank, alpha = _commonest(x.rank for x in layers.values()), _commonest(x.alpha for x in layers.values())
    with adapters.use(None):
        modules = dict(adapters.model.named_modules())
        targets = shortest_targets(adapters.model, tuple(layers), saved)
        task = "CAUSAL_LM" if output_head(adapters.model) is not None else None
        if task is None and "score" in modules:
            task = "SEQ_CLS"
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": all(turned(modules[path]) for path in layers),
        "target_modules": list(targets),
        "modules_to_save": saved or None,
        "rank_pattern": {re.escape(path): x.rank for path, x in layers.items() if x.rank != rank},
        "alpha_pattern": {re.escape(path): _whole(x.alpha) for path, x in layers.items() if x.alpha != alpha},
    }


def _plan(adapters: Adapters, config: PeftConfig, folder: Path) -> tuple[dict[str, LayerPlan], tuple[str, ...]]:
    """The layers that the configuration means on this model, with their sizes, and the modules saved whole."""
    model = adapters.model
    paths = module_paths(model)
    unknown = {name for name in config.modules_to_save if not any(path.endswith(name) for path in paths)}
    if AUTOMATIC_HEADS.issubset(config.modules_to_save) and not AUTOMATIC_HEADS.issubset(unknown):
        unknown -= AUTOMATIC_HEADS
    if unknown:
        raise AdapterError(
            f"{folder / CONFIG_FILE}: 'modules_to_save' names {sorted(unknown)}, which the model does not have"
        )
    body = body_layers(model)
    plan = {
        path: LayerPlan(config.rank_of(path), config.alpha_of(path))
        for path in linear_layers(model)
        if config.targets(path, body)
    }
    if not plan:
        names = ", ".join(sorted({path.rpartition(".")[2] for path in linear_layers(model)}))
        raise AdapterError(
            f"{folder / CONFIG_FILE}: 'target_modules' {config.target_modules!r} matches no linear layer of this "
            f"model, which has: {names}; is it the base model that the adapter was trained on?"
        )
    head = output_head(model)
    if head in plan:
        raise AdapterError(
            f"{folder / CONFIG_FILE}: 'target_modules' includes the output head '{head}', which can only be trained "
            "whole here (modules_to_save); merge the adapter with peft and start from the merged model"
        )
    return plan, outermost([path for path in paths if config.saves(path)])


def _expected_shapes(
    adapters: Adapters, config: PeftConfig, plan: Mapping[str, LayerPlan], saved: Iterable[str]
) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    layers = linear_layers(adapters.model)
    for path, size in plan.items():
        rows, columns = sides(layers[path])
        shapes[f"{path}.lora_A.weight"] = torch.Size((size.rank, columns))
        shapes[f"{path}.lora_B.weight"] = torch.Size((rows, size.rank))
        if config.dora:
            shapes[f"{path}.lora_magnitude_vector"] = torch.Size((rows,))
    for path in saved:
        state = plain_copy(adapters.model.get_submodule(path)).state_dict()
        shapes |= {f"{path}.{key}": tensor.shape for key, tensor in state.items()}
    return shapes


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors by module path; peft's prefix is taken off. Only safetensors is read: a pickle can run code."""
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        if (folder / PICKLE_FILE).is_file():
            raise AdapterError(
                f"{folder}: only {PICKLE_FILE} found, a pickle, which can run code when read; load it with peft where "
                f"you trust it and save it again with safe_serialization=True to get {WEIGHTS_FILE}"
            )
        raise AdapterError(f"{folder}: there is no {WEIGHTS_FILE}")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, LookupError, AttributeError, ValueError) as fault:
        raise AdapterError(f"{file}: not a complete safetensors file ({fault}); copy or train it again") from None
    # Some versions of peft wrote DoRA's vector as a module.
    return {key.removeprefix(PREFIX).replace("_vector.weight", "_vector"): tensor for key, tensor in tensors.items()}


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], folder: Path) -> None:
    problems = []
    if unmatched := sorted(tensors.keys() - expected.keys()):
        problems.append(f"{len(unmatched)} keys match nothing in this model and configuration: {_some(unmatched)}")
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"{len(missing)} keys are missing: {_some(missing)}")
    problems += [
        f"'{key}' has shape {list(tensors[key].shape)}, expected {list(expected[key])}"
        for key in sorted(tensors.keys() & expected.keys())
        if tensors[key].shape != expected[key]
    ][:SHOWN]
    odd = [key for key in sorted(tensors.keys() & expected.keys()) if not _is_sound(tensors[key])]
    if odd:
        problems.append(f"{len(odd)} tensors hold what are no finite real numbers: {_some(odd)}")
    if problems:
        remedy = "is it the base model that the adapter was trained on?"
        raise AdapterError("\n".join(f"{folder / WEIGHTS_FILE}: {problem}; {remedy}" for problem in problems))


def _is_sound(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool(torch.isfinite(tensor.float()).all())


def _settings(
    adapters: Adapters, config: PeftConfig, plan: Mapping[str, LayerPlan], saved: tuple[str, ...], folder: Path
) -> AdapterSettings:
    try:
        return AdapterSettings(
            rank=config.rank,
            alpha=config.alpha,
            rslora=config.rslora,
            dropout=config.dropout,
            targets=shortest_targets(adapters.model, tuple(plan), saved),
            dora=config.dora,
            init="pissa" if config.pissa else "default",
            modules_to_save=saved,
        )
    except ValidationError as invalid:
        faults = "; ".join(f"'{'.'.join(map(str, e['loc']))}' {e['msg']}" for e in invalid.errors(include_url=False))
        raise AdapterError(f"{folder / CONFIG_FILE}: {faults}") from None


def _differences(settings: AdapterSettings, training: AdapterSettings | None, folder: Path) -> tuple[str, ...]:
    if training is None:
        return ()
    shape = ("rank", "rslora", "dora")
    given = {key: getattr(training, key) for key in shape if key in training.model_fields_set}
    if "alpha" in training.model_fields_set:
        given["alpha"] = training.effective_alpha
    return tuple(
        f"the recipe's adapter.{key} {value} is not used: {folder} has {getattr(settings, key)}"
        for key, value in given.items()
        if value != getattr(settings, key)
    )


@torch.no_grad()
def _fill(adapters: Adapters, name: str, tensors: Mapping[str, Tensor]) -> None:
    for key, parameter in adapters.parameters(name).items():
        if key in tensors:
            parameter.copy_(tensors[key])
    for path, module in adapters.saved_modules(name).items():
        for key, buffer in module.state_dict().items():
            if f"{path}.{key}" in tensors:
                buffer.copy_(tensors[f"{path}.{key}"])


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _some(keys: list[str]) -> str:
    more = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {more} more" if more > 0 else "")
