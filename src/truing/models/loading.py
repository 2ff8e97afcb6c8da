"""A model folder, read and checked: what is wrong with it is said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from truing.core.errors import ModelError
from truing.models.folder import (
    architecture_of,
    brief,
    config_of,
    digest,
    json_object,
    model_folder,
    quiet_transformers,
    scores_answers,
    weight_files,
)
from truing.models.nf4 import Storage, quantisation, quiet_bitsandbytes, take_over

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
HARMLESS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Buffers that old checkpoints store and the model computes for itself."""

NONSENSE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What libraries raise for files that make no sense to them, or name what they do not have."""

SLACK = 64
"""A model may take so many times the bytes of its weight files: a configuration may ask for any number of layers."""

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


_CODE = "needs code of its own ('auto_map'), which truing never runs; use a version that transformers supports itself"

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
    folder = model_folder(str(path))
    raw = config_of(folder)
    weights = weight_files(folder)
    with quiet_transformers(), quiet_bitsandbytes():
        config = _config(folder, raw, scores)
        tokenizer = load_tokenizer(folder)
        if scores:
            _make_scorer(folder, config, tokenizer)
        module = _module(folder, weights, config, dtype, scores, _placed(storage, device))
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
    settings = folder / "tokenizer_config.json"
    raw = json_object(settings) if settings.is_file() else {}
    _refuse_other_places(raw, settings)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as failure:  # noqa: BLE001 - the tokenizers' library, in Rust, raises nothing narrower
        if "auto_map" in raw:
            raise ModelError(f"{settings}: the tokenizer {_CODE}") from None
        raise ModelError(f"{folder}: the tokenizer cannot be read: {brief(failure)}") from None
    return tokenizer


def _refuse_other_places(settings: Mapping[str, Any], file: Path) -> None:
    """A tokenizer is read from its own folder, whatever files its settings name."""
    for key, value in settings.items():
        if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
            raise ModelError(f"{file}: '{key}' names {value}, outside of the tokenizer's folder; expected a file in it")


def read_outline(path: str | Path) -> Outline:
    """Read what a model's folder, or hub id, says of it besides the weights."""
    from transformers import GenerationConfig

    folder = model_folder(str(path))
    with quiet_transformers():
        text = _config(folder, config_of(folder), scores=False).get_text_config()
        tokenizer = load_tokenizer(folder)
        generation = text
        if (folder / "generation_config.json").is_file():
            try:
                generation = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
            except NONSENSE as failure:
                raise ModelError(f"{folder}/generation_config.json: {brief(failure)}") from None
    positions = vars(text).get("max_position_embeddings", vars(text).get("n_positions"))
    ends = _ends(tokenizer, generation.eos_token_id)
    return Outline(tokenizer, ends, positions if isinstance(positions, int) else None)


def end_tokens(tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's end token and those of the generation settings."""
    # A classifier has no generation settings; its configuration then says what the model's own end was.
    generation = getattr(module, "generation_config", None) or module.config.get_text_config()
    return _ends(tokenizer, generation.eos_token_id)


def _ends(tokenizer: PreTrainedTokenizerBase, more: object) -> frozenset[int]:
    several = [tokenizer.eos_token_id, *(more if isinstance(more, list | tuple) else [more])]
    found = [token for token in several if token is not None]
    if not all(isinstance(token, int) and 0 <= token < len(tokenizer) for token in found):
        raise ModelError(
            f"{tokenizer.name_or_path}: 'eos_token_id' is {brief(more)}; expected ids of its {len(tokenizer)} tokens"
        )
    return frozenset(found)


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


def _make_scorer(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """One score an answer; read at the last token, so pad must not be the token that ends answers."""
    named = vars(config).get("id2label")
    labels = len(named) if isinstance(named, dict) and named else 1
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
    except (*NONSENSE, StrictDataclassError) as failure:
        if "auto_map" in raw:
            raise ModelError(f"{folder}/config.json: the model {_CODE}") from None
        raise ModelError(f"{folder}/config.json: {brief(failure)}") from None
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _several(names)}
    architecture = architecture_of(raw)
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
    folder: Path,
    weights: Sequence[Path],
    config: PretrainedConfig,
    dtype: torch.dtype | None,
    scores: bool,
    placed: Mapping[str, Any],
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    try:
        _check_size(folder, kind, config, weights)
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
    except NONSENSE as failure:
        raise ModelError(f"{folder}: the weights cannot be loaded: {brief(failure)}") from None
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


def _check_size(folder: Path, kind: Any, config: PretrainedConfig, weights: Sequence[Path]) -> None:
    """Refuse a configuration of a model far larger than its weights, before any memory is taken for it."""
    tensors, size = 0, sum(file.stat().st_size for file in weights)
    for file in weights:
        with safe_open(file, framework="pt") as opened:
            tensors += len(opened.keys())
    layers = vars(config.get_text_config()).get("num_hidden_layers") or 0
    if layers <= tensors:  # each has weights of its own; only then is their number worth being built
        with torch.device("meta"):
            outline = kind.from_config(config, trust_remote_code=False)
        if sum(part.numel() for part in (*outline.parameters(), *outline.buffers())) <= SLACK * size:
            return
    raise ModelError(
        f"{folder}/config.json: describes a model far larger than its weight files; they do not belong together"
    )


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
    largest = max(tokenizer.get_vocab().values(), default=0)
    known = max(len(tokenizer), largest + 1)
    if known > rows:
        raise ModelError(
            f"{folder}: the tokenizer has {known} tokens but the model only {rows} embeddings; "
            "they do not belong together, or tokens were added without enlarging the model"
        )
