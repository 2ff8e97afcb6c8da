"""What a person writes: frozen pydantic models whose complaints name the key, the value and the remedy."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from truing.core.errors import InputError, RecipeError, suggest

S = TypeVar("S", bound="Settings")

ELSEWHERE = {
    "learning_rate": "optim.lr",
    "num_train_epochs": "optim.epochs",
    "max_steps": "optim.max_steps",
    "lr_scheduler_type": "optim.schedule",
    "warmup_ratio": "optim.warmup",
    "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.max_grad_norm",
    "per_device_train_batch_size": "batch.examples (rows in one optimizer step)",
    "gradient_accumulation_steps": "batch.examples (micro-batches are cut by batch.micro_tokens)",
    "gradient_checkpointing": "precision.gradient_checkpointing",
    "bf16": "precision: bf16",
    "fp16": "precision: bf16",
    "loss_type": "objective.use",
    "assistant_only_loss": "data.loss_on: assistant",
    "completion_only_loss": "data.loss_on: assistant (or all)",
    "precompute_ref_log_probs": "reference.precompute_ref_log_probs",
    "max_length": "data.max_length",
    "packing": "data.packing",
    "output_dir": "output",
    "model_name_or_path": "model",
    "dataset_name": "data.path",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "save_steps": "checkpoint.every",
    "eval_steps": "evaluation.every",
    "num_generations": "rollout.group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "response_length": "rollout.max_new_tokens",
    "reward_funcs": "rollout.rewards",
    "reward_model_path": "rollout.rewards",
    "num_ppo_epochs": "rollout.epochs",
    "num_iterations": "rollout.epochs",
    "num_mini_batches": "rollout.mini_batches",
    "cliprange": "objective.clip_range",
    "cliprange_value": "objective.clip_range_value",
    "vf_coef": "objective.value_coef",
    "missing_eos_penalty": "objective.missing_end_penalty",
}
"""Names that other tools use, and where the same thing stands in a recipe."""


class Settings(BaseModel):
    """A section of a recipe: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def parse(
    cls: type[S],
    raw: Any,
    *,
    where: Callable[[tuple[str | int, ...]], str] = lambda path: "",
    error: type[InputError] = RecipeError,
) -> S:
    """Validate `raw` as `cls`; every complaint becomes one line of one error.

    `where` turns the path of a key into a place (file and line) to begin that line with.
    """
    if not isinstance(raw, Mapping):
        raise error(f"{where(())}expected a mapping of keys, found {type(raw).__name__}")
    try:
        return cls.model_validate(dict(raw))
    except ValidationError as invalid:
        lines = [_complaint(cls, problem, where) for problem in invalid.errors(include_url=False)]
        raise error("\n".join(dict.fromkeys(lines))) from None


def _complaint(cls: type[Settings], problem: Any, where: Callable[[tuple[str | int, ...]], str]) -> str:
    path, section = _place(cls, problem["loc"], whole=problem["type"] in ("extra_forbidden", "missing"))
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        known = [] if section is None else list(section.model_fields)
        name = str(path[-1])
        hint = f"; here it is {ELSEWHERE[name]}" if name in ELSEWHERE and name not in known else suggest(name, known)
        return f"{where(path)}'{key}' is not a known key{hint}"
    if problem["type"] == "missing":
        return f"{where(path[:-1])}'{key}' is missing; it is required"
    found = problem.get("input")
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{where(path)}'{key}': {message} (found {_short(found)})" if key else f"{where(path)}{message}"


def _is_branch_name(part: str | int) -> bool:
    """Pydantic puts the name of a union's branch into the path; a person did not write it."""
    return isinstance(part, str) and (
        part in {"str", "int", "float", "bool", "none"} or "[" in part or part[:1].isupper()
    )


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a thousand lists in each other
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _place(
    cls: type[BaseModel], loc: tuple[str | int, ...], *, whole: bool
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """A complaint's path as a person wrote it, and the section that its last key should belong to.

    `whole` says that the path ends with a key, however that is written, and not with a branch of a union.
    """
    path: list[str | int] = []
    section: type[BaseModel] | None = cls
    choices: tuple[type[BaseModel], ...] = ()
    for part in loc[:-1]:
        chosen = next((choice for choice in choices if use_of(choice) == part), None)
        if chosen is not None:
            section, choices = chosen, ()
            continue
        if _is_branch_name(part):
            continue
        path.append(part)
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section is not None else None
        choices = settings_in(field.annotation) if field else ()
        section = choices[0] if choices else None
    return (*path, *(part for part in loc[-1:] if whole or not _is_branch_name(part))), section


def settings_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the settings classes inside a field's type: several where `use` chooses between them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, typing.Annotated):
        return tuple(found for argument in typing.get_args(annotation) for found in settings_in(argument))
    return ()


def use_of(section: type[BaseModel]) -> str | None:
    """The word by which `use` chooses a section; None where there is no such choice."""
    field = section.model_fields.get("use")
    return field.default if field is not None and isinstance(field.default, str) else None
