"""A model folder, read and checked: what is wrong with it is said before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from truing.core.errors import ModelError, suggest
from truing.models.nf4 import Storage, quantisation, quiet_bitsandbytes, take_over

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a hub id: no code, no pickles."""

HARMLESS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Buffers that old checkpoints store and the model computes for itself."""

NOISES = ("jitter_noise", "input_jitter_noise")
"""Attributes besides dropout by which a layer in training mode adds noise."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model with its tokenizer and what runs record about it."""

    module: PreTrainedModel
    """In evaluation mode, with every dropout at zero, so that training mode computes the same numbers."""
    tokenizer: PreTrainedTokenizerBase
    end_tokens: frozenset[int]
    """Tokens that end an answer: the tokenizer's, and those the generation settings add."""
    digest: str
    """SHA-256 of the weights and the configuration, as they are on the disk."""
    name: str
    """The path or hub id as it was given."""
    storage: Storage = None
    """How the linear layers of its body are stored."""


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What a model folder says without its weights."""

    tokenizer: PreTrainedTokenizerBase
    end_tokens: frozenset[int]
    """Those of `LoadedModel`."""
    max_positions: int | None
    """Tokens of context that the model was made for; None where its configuration names no limit."""


SCORE = "score"
"""Where transformers' sequence classifiers keep the head that makes a reward model of a language model."""


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    scores: bool = False,
    storage: Storage = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer from a folder, or a hub id where the hub can be reached.

    With `scores` it becomes a reward model: a sequence classifier of one label, whose head is zero unless the folder
    holds one.

    `dtype` None keeps the checkpoint's own. Reads safetensors and JSON only; code that comes with a model is never run.
    With a `storage` the linear layers of its body are packed as they are read, from numbers in `dtype`. Raises
    ModelError that says what is missing or does not match.
    """
    folder = _folder(str(path))
    raw = _config_json(folder)
    weights = _weight_files(folder)
    with quiet_transformers(), quiet_bitsandbytes():
        config = _config(folder, raw, scores)
        tokenizer = load_tokenizer(folder)
        if scores:
            _make_scorer(folder, config, tokenizer)
        module = _module(folder, config, dtype, scores, _placed(storage, device))
        if storage is not None:
            take_over(module)
    _check_vocabulary(folder, tokenizer, module)
    disable_dropout(module)
    return LoadedModel(
        module=module.to(device).eval(),
        tokenizer=tokenizer,
        end_tokens=end_tokens(tokenizer, module),
        digest=digest([folder / "config.json", *weights]),
        name=str(path),
        storage=storage,
    )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; no token is added and pad is left as it is, for trees are never padded."""
    from transformers import AutoTokenizer

    folder = Path(path)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy the model's tokenizer here"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as failure:
        raise ModelError(f"{folder}: the tokenizer cannot be read: {_brief(failure)}") from None
    return tokenizer


def read_outline(path: str | Path) -> Outline:
    """Read what a model's folder, or hub id, says of it besides the weights."""
    from transformers import GenerationConfig

    folder = _folder(str(path))
    with quiet_transformers():
        text = _config(folder, _config_json(folder), scores=False).get_text_config()
        tokenizer = load_tokenizer(folder)
        generation = text
        if (folder / "generation_config.json").is_file():
            try:
                generation = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
            except (OSError, ValueError, TypeError) as failure:
                raise ModelError(f"{folder}/generation_config.json: {_brief(failure)}") from None
    positions = vars(text).get("max_position_embeddings", vars(text).get("n_positions"))
    return Outline(tokenizer, _ends(tokenizer, generation.eos_token_id), None if positions is None else int(positions))


def end_tokens(tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's end token and those of the generation settings."""
    # A classifier has no generation settings; its configuration then says what the model's own end was.
    generation = getattr(module, "generation_config", None) or module.config.get_text_config()
    return _ends(tokenizer, generation.eos_token_id)


def _ends(tokenizer: PreTrainedTokenizerBase, more: int | Sequence[int] | None) -> frozenset[int]:
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, more):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(token) for token in value)
    return frozenset(found)


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, read in pieces."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def model_digest(path: str | Path) -> str:
    """The `digest` that `load_model` gives for this folder."""
    folder = _folder(str(path))
    return digest([folder / "config.json", *_weight_files(folder)])


def disable_dropout(module: nn.Module) -> None:
    """Set every dropout to zero in the layers, not in the configuration that will be saved.

    Evaluation mode alone would do that too, but gradient checkpointing and LoRA dropout need training mode, and a
    policy with dropout would disagree with its own log-probs. Call it before adapters are added: theirs is the
    user's choice.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("drop" in name or name in NOISES):
                setattr(part, name, 0.0)


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


def _folder(path: str) -> Path:
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
            f"({_brief(failure)}); give a folder that holds config.json and *.safetensors"
        ) from None


def _config_json(folder: Path) -> Mapping[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder}: an adapter, not a model; give its base as `model` and this folder as `adapter.start`"
            )
        raise ModelError(f"{folder}: not a model folder: it has no config.json")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as failure:
        raise ModelError(f"{file}: not valid JSON: {failure}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{file}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _weight_files(folder: Path) -> list[Path]:
    """The files transformers will read: the shards an index names, or the single file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{index}: not an index of weight files; expected a 'weight_map'") from None
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


def scores_answers(path: str | Path) -> bool:
    """Whether a model folder, by its config.json, is a sequence classifier, as reward models are."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    names = _config_json(Path(path)).get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def _make_scorer(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """One score an answer; read at the last token, so pad must not be the token that ends answers."""
    labels = len(vars(config).get("id2label") or {}) or 1
    if scores_answers(folder) and labels != 1:
        raise ModelError(f"{folder}: a classifier of {labels} labels; a reward model has one")
    config.num_labels = 1
    pad = tokenizer.pad_token_id
    config.pad_token_id = None if pad == tokenizer.eos_token_id else pad


def _config(folder: Path, raw: Mapping[str, Any], scores: bool) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as failure:
        if "auto_map" in raw:
            raise ModelError(
                f"{folder}/config.json: the model needs code of its own ('auto_map'), which truing never runs; "
                "use a version of the model that transformers supports itself"
            ) from None
        raise ModelError(f"{folder}/config.json: {_brief(failure)}") from None
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _several(names)}
    architecture = str((raw.get("architectures") or [""])[0])
    if scores:
        scorers = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        if config.model_type not in scorers:
            raise ModelError(f"{folder}/config.json: transformers has no sequence classifier for {config.model_type}")
        known |= {name for names in scorers.values() for name in _several(names)}
    elif architecture.endswith("ForSequenceClassification"):
        raise ModelError(
            f"{folder}/config.json: {architecture} is not a causal language model: it scores answers and writes none"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (architecture and architecture not in known):
        raise ModelError(
            f"{folder}/config.json: {architecture or config.model_type} is not a causal language model; "
            "expected one that transformers lists under AutoModelForCausalLM"
        )
    return config


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _placed(storage: Storage, device: torch.device) -> dict[str, Any]:
    """Arguments for transformers to pack layers where they will be used; none for an ordinary model."""
    return {} if storage is None else {"quantization_config": quantisation(), "device_map": {"": device}}


def _module(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype | None, scores: bool, placed: Mapping[str, Any]
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    try:
        module, report = kind.from_pretrained(
            str(folder),
            config=config,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are listed in the report, and refused below by name
            output_loading_info=True,
            **placed,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as failure:
        raise ModelError(f"{folder}: the weights cannot be loaded: {_brief(failure)}") from None
    if scores and isinstance(head := getattr(module, SCORE, None), nn.Linear):
        if any(key.startswith(f"{SCORE}.") for key in report["missing_keys"]):
            nn.init.zeros_(head.weight)
        report = {
            **report,
            "missing_keys": {key for key in report["missing_keys"] if not key.startswith(f"{SCORE}.")},
            "unexpected_keys": {key for key in report["unexpected_keys"] if key != "lm_head.weight"},
        }
    elif scores:
        raise ModelError(f"{folder}: {type(module).__name__} keeps its score elsewhere than in '{SCORE}'")
    _check_weights(folder, report, config)
    loaded: PreTrainedModel = module
    return loaded


def _check_weights(folder: Path, report: Mapping[str, Any], config: PretrainedConfig) -> None:
    """Refuse weights that leave part of the model random, or that the model has no place for."""
    tied = bool(vars(config).get("tie_word_embeddings"))
    unexpected = [
        key
        for key in report["unexpected_keys"]
        if not key.endswith(HARMLESS) and not (tied and key == "lm_head.weight")
    ]
    mismatched = [str(entry[0]) for entry in report["mismatched_keys"]]
    for what, keys in (
        ("has no weights for", sorted(report["missing_keys"])),
        ("has weights of another shape for", sorted(mismatched)),
        ("has weights the model has no place for:", sorted(unexpected)),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"{folder} {what} {', '.join(keys[:3])}{more}; config.json and the weights do not belong together"
            )


def _check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> None:
    rows = int(module.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; "
            "they do not belong together, or tokens were added without enlarging the model"
        )


def _brief(failure: Exception) -> str:
    text = str(failure).strip() or type(failure).__name__
    return " ".join(text.split())[:200]
