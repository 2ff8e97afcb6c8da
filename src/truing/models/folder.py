"""A model's folder: which files it has, and what its configuration says, before any of it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truing.core.errors import ModelError, suggest
from truing.core.files import read_json

LONGEST_NAME = 255
"""Bytes of a file's name, at most."""

PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a hub id: no code, no pickles."""


def model_folder(path: str) -> Path:
    """The folder that a path, or a hub id where the hub can be reached, means."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model: {path} is a file; give the folder that holds config.json and *.safetensors")
    parent = folder.parent
    looks_local = path.startswith((".", "~", "/")) or path.count("/") > 1 or (parent != Path() and parent.is_dir())
    near = suggest(folder.name, [entry.name for entry in parent.iterdir() if entry.is_dir()]) if parent.is_dir() else ""
    near = near if near.startswith("; did you mean") else ""
    if looks_local:
        raise ModelError(f"model: there is no folder {path}{near}")
    return _from_hub(path, near)


def _from_hub(name: str, near: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet_transformers():
            return Path(snapshot_download(name, allow_patterns=HUB_FILES, etag_timeout=5))
    except (OSError, ValueError) as failure:  # every error of the hub's client is one of these
        raise ModelError(
            f"model: there is no folder {name}{near}, and it cannot be fetched from the hub "
            f"({brief(failure)}); give a folder that holds config.json and *.safetensors"
        ) from None


def config_of(folder: Path) -> Mapping[str, Any]:
    """What a folder's config.json holds. Raises ModelError where it is no object, or not there."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: an adapter, not a model; give its base as `model` and this folder as `adapter.start`"
            )
        raise ModelError(f"{folder}: not a model folder: it has no config.json")
    return json_object(file)


def json_object(file: Path) -> dict[str, Any]:
    """A JSON file of a model's folder that holds an object. Raises ModelError where it does not."""
    try:
        raw = read_json(file)
    except (OSError, ValueError) as failure:
        raise ModelError(f"{file}: not valid JSON: {failure}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return raw


def weight_files(folder: Path) -> list[Path]:
    """The files transformers will read: the shards an index names, or the single file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            raise ModelError(f"{index}: not an index of weight files; expected a 'weight_map'") from None
        strange = [name for name in names if not _is_file_name(name)]
        if strange or not names:
            raise ModelError(
                f"{index}: 'weight_map' names {brief(strange[:1])}; expected names of files in the same folder"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: {len(missing)} of {len(names)} weight files are missing, e.g. {missing[0]}")
        return [folder / name for name in names]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: only pickled weights ({pickles[0]}), which can run code when read; convert them once where you "
            "trust them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors"
        )
    raise ModelError(f"{folder}: a config.json but no weights; expected model.safetensors or its index")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and len(name.encode("utf-8", "replace")) <= LONGEST_NAME


def scores_answers(path: str | Path) -> bool:
    """Whether a model folder, by its config.json, is a sequence classifier, as reward models are."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    return architecture_of(config_of(Path(path))).endswith("ForSequenceClassification")


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The first of a configuration's architectures; empty where it names none."""
    names = raw.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, read in pieces."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def model_digest(path: str | Path) -> str:
    """The `digest` that `load_model` gives for this folder."""
    folder = model_folder(str(path))
    return digest([folder / "config.json", *weight_files(folder)])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' warnings and progress bars off the terminal; what matters is raised as an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def brief(failure: object) -> str:
    """What a library says, in one short line."""
    text = str(failure).strip() or type(failure).__name__
    return " ".join(text.split())[:200]
