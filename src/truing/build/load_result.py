"""Opens what a run produced, for chat and merging: a run directory, an adapter folder, or a model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from truing.core.errors import RunError
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE, LoadedModel, load_model, load_tokenizer, scores_answers
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.selfcheck import self_check

RESULT = "result"


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model ready to answer."""

    name: str
    loaded: LoadedModel
    model: LanguageModel
    adapters: Adapters | None
    tokenizer: PreTrainedTokenizerBase
    """The one saved with the result, with the template it was trained in."""


def result_folder(path: Path) -> Path:
    """Return the folder that holds the model or adapter which `path` means."""
    if (path / "recipe.yaml").is_file():
        if not (path / "final").is_dir():
            raise RunError(f"{path} has no result yet; continue it with `truing resume {path}`")
        return path / "final"
    return path


def open_result(path: Path) -> Opened:
    """Load a run's result, an adapter folder with its base, a model folder or a hub id, in its own precision."""
    folder = result_folder(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = folder / "adapter_config.json"
    if not config.is_file():
        loaded = load_model(str(folder), dtype=None, device=device)
        return Opened(str(path), loaded, _language_model(loaded), None, loaded.tokenizer)
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as failure:
        raise RunError(f"{config} does not name its base model: {failure!r}") from failure
    loaded = load_model(base, dtype=None, device=device)
    model = _language_model(loaded)
    adapters = Adapters(loaded.module)
    load_adapter(adapters, RESULT, folder)
    adapters.switch(RESULT)
    return Opened(str(path), loaded, model, adapters, load_tokenizer(folder))


def open_scorer(path: Path) -> Opened:
    """Load a reward model: a run's result, an adapter folder with its base, or a sequence classifier."""
    folder = result_folder(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = folder / "adapter_config.json"
    if not config.is_file():
        if not scores_answers(folder):
            raise RunError(f"{path} is no reward model; train one with objective: {{use: reward}}")
        loaded = load_model(str(folder), dtype=None, device=device, scores=True)
        return Opened(str(path), loaded, _language_model(loaded), None, loaded.tokenizer)
    values = json.loads(config.read_text(encoding="utf-8"))
    if SCORE not in (values.get("modules_to_save") or ()):
        raise RunError(f"{path} is an adapter without a score head; train one with objective: {{use: reward}}")
    loaded = load_model(values["base_model_name_or_path"], dtype=None, device=device, scores=True)
    model = _language_model(loaded)
    adapters = Adapters(loaded.module)
    load_adapter(adapters, RESULT, folder)
    adapters.switch(RESULT)
    return Opened(str(path), loaded, model, adapters, load_tokenizer(folder))


def _language_model(loaded: LoadedModel) -> LanguageModel:
    return LanguageModel(loaded.module, sharing=self_check(loaded.module).sharing)
