"""Opens what a run produced, for chat and merging: a run directory, an adapter folder, or a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from truing.core.errors import RunError
from truing.core.files import read_json
from truing.models.folder import scores_answers
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE, LoadedModel, load_model, load_tokenizer
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_config import CONFIG_FILE
from truing.models.lora.peft_format import load_adapter
from truing.models.nf4 import storage_of
from truing.models.selfcheck import self_check
from truing.recipe.load import load_recipe

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


def template_of(path: Path) -> str | None:
    """How a result's own template is to be used: for raw text too, where its run put raw text into it."""
    folder = path.parent if path.name == "final" else path
    recipe = folder / "recipe.yaml"
    named = load_recipe(recipe).stages[-1].template if recipe.is_file() else None
    return None if named in (None, "plain") else "tokenizer"


def open_result(path: Path, dtype: torch.dtype | None = None) -> Opened:
    """Load a run's result, an adapter folder with its base, a model folder or a hub id.

    `dtype` None keeps the checkpoint's own.
    """
    if is_scorer(path):
        raise RunError(f"{path} is a reward model: it scores answers and writes none; use `truing score`")
    return _open(path, scores=False, dtype=dtype)


def is_scorer(path: Path) -> bool:
    """Whether a run, adapter or model is a reward model."""
    folder = result_folder(path)
    if (folder / CONFIG_FILE).is_file():
        saved = _adapter_config(folder).get("modules_to_save")
        return isinstance(saved, list) and SCORE in saved
    return scores_answers(folder)


def open_scorer(path: Path, dtype: torch.dtype | None = None) -> Opened:
    """Load a reward model: a run's result, an adapter folder with its base, or a sequence classifier.

    `dtype` None keeps the checkpoint's own.
    """
    check_scorer(path)
    return _open(path, scores=True, dtype=dtype)


def check_members(paths: Sequence[Path]) -> None:
    """Refuse reward models that cannot be one ensemble, before any of them is loaded: all read the same token ids."""
    seen: dict[Path, Path] = {}
    for path in paths:
        check_scorer(path)
        if path.resolve() in seen:
            raise RunError(f"{path} is given twice; the members of an ensemble are different reward models")
        seen[path.resolve()] = path
    if len(paths) == 1:
        return
    first, *others = ((path, load_tokenizer(result_folder(path))) for path in paths)
    for path, tokenizer in others:
        remedy = f"train it from the same base as {first[0]}, or score with it by itself"
        check_same_vocabulary(path, first[1], str(first[0]), remedy)
        if tokenizer.chat_template != first[1].chat_template:
            raise RunError(f"{path} was trained with another chat template than {first[0]}; {remedy}")


def check_same_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase, of: str, remedy: str) -> None:
    """Refuse a reward model that reads other token ids than these."""
    known, own = tokenizer.get_vocab(), load_tokenizer(result_folder(path)).get_vocab()
    strange = sorted(set(known.items()) ^ set(own.items()), key=lambda entry: (entry[1], entry[0]))
    if strange:
        token = strange[0][0]
        raise RunError(
            f"{path} has another vocabulary than {of}: the token {token!r} is number {own.get(token, 'none')} there "
            f"and {known.get(token, 'none')} here; {remedy}"
        )


def adapter_base(path: Path) -> str | None:
    """The base model that a run's or folder's adapter belongs to; None where it is a whole model."""
    folder = result_folder(path)
    return str(_adapter_config(folder)["base_model_name_or_path"]) if (folder / CONFIG_FILE).is_file() else None


def check_scorer(path: Path) -> None:
    """Refuse a path that is no reward model."""
    if not path.exists():
        raise RunError(f"there is no run or model folder {path}")
    if not is_scorer(path):
        raise RunError(f"{path} is no reward model: it has no score head; train one with objective: {{use: reward}}")


def _open(path: Path, *, scores: bool, dtype: torch.dtype | None = None) -> Opened:
    folder = result_folder(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (folder / CONFIG_FILE).is_file():
        loaded = load_model(str(folder), dtype=dtype, device=device, scores=scores)
        return Opened(str(path), loaded, _language_model(loaded), None, loaded.tokenizer)
    base = _adapter_config(folder)["base_model_name_or_path"]
    loaded = load_model(base, dtype=dtype, device=device, scores=scores, storage=storage_of(folder))
    model = _language_model(loaded)
    adapters = Adapters(loaded.module)
    load_adapter(adapters, RESULT, folder)
    adapters.switch(RESULT)
    return Opened(str(path), loaded, model, adapters, load_tokenizer(folder))


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    try:
        values = read_json(file)
    except (OSError, ValueError) as failure:
        raise RunError(f"{file} cannot be read: {failure}") from failure
    if not isinstance(values, dict) or not isinstance(values.get("base_model_name_or_path"), str):
        raise RunError(f"{file} does not name its base model: expected a path or id as 'base_model_name_or_path'")
    return values


def _language_model(loaded: LoadedModel) -> LanguageModel:
    return LanguageModel(loaded.module, sharing=self_check(loaded.module).sharing)
