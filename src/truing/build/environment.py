"""What a run depends on besides its recipe: versions, device, threads, number formats, hashes."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from truing.core.errors import MachineError, ModelError
from truing.core.files import read_json
from truing.models.calibration import Calibration, Widths
from truing.recipe.schema import Stage

PACKAGES = ("truing", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")

WIDEST = 2**15
"""The widest layer that is tried out: no larger one is common, and a config.json may say anything."""


def choose_device(asked: str, number: int | None = None) -> torch.device:
    """Return the device a recipe asks for; `auto` takes CUDA where there is a GPU, of several the one with a number."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise MachineError("device: cuda was asked for, but torch sees no CUDA GPU; use device: auto or cpu")
    if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()):
        return torch.device("cuda") if number is None else torch.device("cuda", number)
    return torch.device("cpu")


def choose_dtype(stage: Stage, model: str, device: torch.device, calibration: Calibration) -> torch.dtype:
    """Return the format of weights and activations.

    `auto` keeps a bf16 checkpoint in bf16 on a GPU, and on a CPU that multiplies it faster than float32; all else is
    float32, so that a small model on a CPU is trained as exactly as it can be.
    """
    asked = stage.precision.dtype
    if asked != "auto":
        return torch.bfloat16 if asked == "bf16" else torch.float32
    if checkpoint_dtype(model) not in ("bfloat16", "float16"):
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" or calibration.bf16_speedup > 1.2 else torch.float32


def checkpoint_dtype(model: str) -> str:
    """The number format that a model folder's config.json states; empty when it states none."""
    values = _config(model)
    return str(values.get("dtype") or values.get("torch_dtype") or "")


def widths_of(model: str) -> Widths:
    """The widths that a model folder's config.json states, under the names of the common families."""
    values = _text_config(model)
    usual = Widths()

    def first(default: int, *names: str) -> int:
        found = next((values[name] for name in names if isinstance(values.get(name), int)), default)
        return min(max(found, 1), WIDEST)

    hidden = first(usual.hidden, "hidden_size", "n_embd", "d_model")
    return Widths(
        hidden,
        first(4 * hidden, "intermediate_size", "n_inner", "ffn_dim"),
        max(1, first(usual.layers, "num_hidden_layers", "n_layer")),
    )


def positions_of(model: str) -> int | None:
    """Tokens of context that a model folder's config.json states; None where it states none."""
    values = _text_config(model)
    return next((v for k in ("max_position_embeddings", "n_positions") if isinstance(v := values.get(k), int)), None)


def _config(model: str) -> dict[str, Any]:
    config = Path(model) / "config.json"
    try:
        values = read_json(config) if config.is_file() else {}
    except (OSError, ValueError) as failure:
        raise ModelError(f"{config}: cannot be read: {failure}") from None
    return values if isinstance(values, dict) else {}


def _text_config(model: str) -> dict[str, Any]:
    values = _config(model)
    inner = values.get("text_config")
    return inner if isinstance(inner, dict) and inner else values


def versions(*more: str) -> dict[str, str]:
    """The versions of the libraries that numbers depend on."""
    found = {}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _also_used(stage: Stage) -> tuple[str, ...]:
    return ("bitsandbytes",) if stage.adapter is not None and stage.adapter.base is not None else ()


def describe(
    stage: Stage, device: torch.device, dtype: torch.dtype, calibration: Calibration, hashes: dict[str, str | None]
) -> dict[str, Any]:
    """Return the content of environment.json."""
    return {
        "versions": {"python": platform.python_version(), **versions(*_also_used(stage))},
        "platform": platform.platform(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "dtype": str(dtype).removeprefix("torch."),
        "calibration": asdict(calibration),
        "seed": stage.seed,
        **hashes,
    }
