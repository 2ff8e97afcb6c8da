"""What a recipe may say. A chain is a list of stages; a stage takes from the top what it does not say itself."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings
from truing.data.settings import DataSettings
from truing.models.lora.settings import AdapterSettings
from truing.rl.settings import RolloutSettings
from truing.training.guard_settings import GuardSettings
from truing.training.settings import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    ForgettingSettings,
    OptimSettings,
    ParallelSettings,
    PrecisionSettings,
    ReferenceSettings,
    SampleSettings,
)
from truing.training.trackers.settings import TrackerSettings, from_words


class Stage(Settings):
    """One training run: where it starts, on what, towards what."""

    name: str = ""
    """Names the stage's folder; by default the objective's name."""
    model: str | None = None
    """A model folder or hub id. A later stage starts from the result of the one before it unless it names its own."""
    template: str | None = None
    """Chat template: the tokenizer's own by default, a named one (plain, chatml, …), or a Jinja file."""
    adapter: AdapterSettings | None = None
    """`{use: lora, rank: 16}`, or `none` to train all weights."""
    objective: dict[str, Any]
    """`{use: NAME, …}` with the fields that `truing methods NAME` lists, or `{use: ./my_loss.py:MyLoss}`."""
    data: DataSettings
    """What to learn from."""
    optim: OptimSettings = OptimSettings()
    """How weights move."""
    batch: BatchSettings = BatchSettings()
    """What one optimizer step sees."""
    rollout: RolloutSettings = RolloutSettings()
    """How the policy's own completions are made and scored, for methods that learn from them."""
    reference: ReferenceSettings = ReferenceSettings()
    """How the frozen start of the stage is kept."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Measuring on held-out rows."""
    guards: GuardSettings = GuardSettings()
    """What is watched while training, and what follows when a figure leaves its healthy range."""
    forgetting: ForgettingSettings = ForgettingSettings()
    """Measuring before and after the stage, on general text, what it costs elsewhere."""
    samples: SampleSettings = SampleSettings()
    """Completions of fixed prompts while training."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saving the state of the run."""
    trackers: tuple[TrackerSettings, ...] = ()
    """Experiment trackers that follow the run, such as `[tensorboard, {use: wandb, project: mine}]`; none by default.
    They need the extra `truing[trackers]`."""
    precision: PrecisionSettings = PrecisionSettings()
    """Number formats and activation checkpointing."""
    parallel: ParallelSettings = ParallelSettings()
    """Several processes at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a CUDA GPU where there is one."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the rows, of new adapter weights, of dropout and of sampling."""

    @field_validator("adapter", mode="before")
    @classmethod
    def _no_adapter(cls, value: Any) -> Any:
        none = value == "none" or (
            isinstance(value, dict) and value.get("use") in ("none", None) and set(value) == {"use"}
        )
        return None if none else value

    @model_validator(mode="after")
    def _adapters_have_small_gradients(self) -> Stage:
        if self.adapter is not None and self.optim.in_backward:
            raise ValueError(
                "optim.in_backward saves the gradients of all weights, and an adapter has few; leave it out, or train "
                "with adapter: none"
            )
        return self

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers_by_name(cls, value: Any) -> Any:
        return from_words(value)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("a stage's name becomes a folder: use letters, digits, '.', '_' and '-'")
        return value


class Recipe(Settings):
    """A resolved recipe: every stage complete, nothing left to defaults."""

    output: str | None = None
    """The run directory; `--output` overrides it."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """One or more stages, each starting from the result of the one before."""
