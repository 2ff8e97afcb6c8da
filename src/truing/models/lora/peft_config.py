"""The `adapter_config.json` of a PEFT folder: what it says, and what of it cannot be honoured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from truing.core.errors import AdapterError
from truing.core.files import read_json

CONFIG_FILE = "adapter_config.json"

INFORMATION = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Fields that do not change what the adapter computes here, or only where another, refused field is set."""

HONOURED = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)

PATIENCE = 0.5
"""Seconds that a pattern may take: nested repetitions take for ever."""
LARGEST_RANK = 2**16

BASE_KEPT = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations after which the base weight is still the original one, so that only A and B matter."""

AUTOMATIC_HEADS = frozenset({"classifier", "score"})
"""Modules that peft lists for every classifier, whichever of them the model has."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of a PEFT LoRA configuration that decides what the adapter computes."""

    rank: int
    alpha: float
    target_modules: str | tuple[str, ...]
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    pissa: bool = False
    exclude_modules: str | tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    def targets(self, path: str, all_linear: Collection[str]) -> bool:
        """Whether a linear layer has a low-rank part; `all_linear` is what that shorthand means on the model."""
        if self._excluded(path):
            return False
        if not isinstance(self.target_modules, str):
            return _ends_with(path, self.target_modules) and self._transformed(path)
        if self.target_modules.lower() == "all-linear":
            return path in all_linear and self._transformed(path)
        return _found(regex.fullmatch, self.target_modules, path) is not None

    def saves(self, path: str) -> bool:
        """Whether a module is trained whole: its path ends with a name, at a dot or not."""
        return any(path.endswith(name) for name in self.modules_to_save)

    def rank_of(self, path: str) -> int:
        """Rank of one layer."""
        return self.rank_pattern.get(_pattern_for(path, self.rank_pattern), self.rank)

    def alpha_of(self, path: str) -> float:
        """Alpha of one layer."""
        return self.alpha_pattern.get(_pattern_for(path, self.alpha_pattern), self.alpha)

    def _excluded(self, path: str) -> bool:
        if any(_found(regex.match, rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save):
            return True
        if isinstance(self.exclude_modules, str):
            return _found(regex.fullmatch, self.exclude_modules, path) is not None
        return _ends_with(path, self.exclude_modules)

    def _transformed(self, path: str) -> bool:
        if not self.layers_to_transform:
            return True
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        matches = (_found(regex.match, pattern, path) for pattern in patterns)
        found = next((match for match in matches if match), None)
        return found is not None and int(found.group(1)) in self.layers_to_transform


def read_config(folder: Path) -> PeftConfig:
    """Read a folder's configuration; `AdapterError` for a field that asks for what is not done here."""
    where = folder / CONFIG_FILE
    if not folder.is_dir():
        raise AdapterError(f"{folder}: there is no such adapter folder")
    if not where.is_file():
        raise AdapterError(f"{folder}: not an adapter folder, it has no {CONFIG_FILE}")
    try:
        raw = read_json(where)
    except (OSError, ValueError) as fault:
        raise AdapterError(f"{where}: not JSON ({fault}); copy the file again from where it was trained") from None
    if not isinstance(raw, dict):
        raise AdapterError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    _refuse_unsupported(raw, where)
    try:
        return _config(raw)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as fault:
        raise AdapterError(f"{where}: a field is missing or of the wrong type: {fault}") from None


def _refuse_unsupported(raw: Mapping[str, Any], where: Path) -> None:
    init = raw.get("init_lora_weights", True)
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"'peft_type' is {raw.get('peft_type')!r}; only LORA is read")
    if raw.get("bias", "none") != "none":
        problems.append(f"'bias' is {raw['bias']!r}; only 'none' is read")
    if init not in BASE_KEPT and init != "pissa":
        problems.append(
            f"'init_lora_weights' is {init!r}, which changes the base weights in a way the folder does not record; "
            "convert it to plain LoRA when saving (path_initial_model_for_weight_conversion)"
        )
    problems += [
        f"'{key}' is {value!r}, which is not supported here; train or convert the adapter without it"
        for key, value in sorted(raw.items())
        if value not in (None, False, 0, "", [], {}) and key not in HONOURED | INFORMATION
    ]
    if problems:
        raise AdapterError("\n".join(f"{where}: {problem}" for problem in problems))


def _config(raw: Mapping[str, Any]) -> PeftConfig:
    targets, layers, exclude = raw["target_modules"], raw.get("layers_to_transform"), raw.get("exclude_modules")
    return PeftConfig(
        rank=_rank(raw["r"]),
        alpha=_finite(raw["lora_alpha"]),
        target_modules=targets if isinstance(targets, str) else _names(targets),
        dropout=_finite(raw.get("lora_dropout") or 0.0),
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        pissa=raw.get("init_lora_weights") == "pissa",
        exclude_modules=exclude if isinstance(exclude, str) and exclude else _names(exclude or ()),
        modules_to_save=_names(raw.get("modules_to_save") or ()),
        rank_pattern={key: _rank(value) for key, value in (raw.get("rank_pattern") or {}).items()},
        alpha_pattern={key: _finite(value) for key, value in (raw.get("alpha_pattern") or {}).items()},
        layers_to_transform=(layers,) if isinstance(layers, int) else tuple(int(index) for index in layers or ()),
        layers_pattern=_names(raw.get("layers_pattern") or ()),
    )


def _rank(value: Any) -> int:
    if not 1 <= int(value) <= LARGEST_RANK:
        raise ValueError(f"expected a rank of 1 to {LARGEST_RANK}, found {value!r}")
    return int(value)


def _finite(value: Any) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"expected a finite number, found {value!r}")
    return float(value)


def _names(value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item for item in items):
        raise TypeError(f"expected a list of module names, found {value!r}")
    return tuple(items)


def _ends_with(path: str, names: Collection[str]) -> bool:
    return path in names or any(path.endswith(f".{name}") for name in names)


def _pattern_for(path: str, patterns: Mapping[str, object]) -> str:
    return next((key for key in patterns if _found(regex.match, rf"(.*\.)?({key})$", path)), path)


def _found(match: Callable[..., Any], pattern: str, path: str) -> Any:
    """What a pattern of a stranger matches; one that is none, or that never comes to an end, is refused."""
    try:
        return match(pattern, path, timeout=PATIENCE)
    except TimeoutError:
        reason = f"takes over {PATIENCE:g} s for the name of one module"
    except (regex.error, RecursionError, MemoryError, ValueError) as fault:
        reason = f"is no regular expression: {fault}"
    raise AdapterError(f"{CONFIG_FILE}: the pattern {pattern[:100]!r} {reason}; write names of modules instead")
