"""The sections of a recipe that steer the trainer. Free of torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings


class OptimSettings(Settings):
    """How weights move: AdamW with a schedule and a clip."""

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default the objective's own, ten times that with LoRA."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data, where `max_steps` does not say otherwise."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, over as many passes as it takes."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the rate does after the warm-up: stay, or fall to `min_lr_ratio` of the peak."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises from zero to its peak."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """The last rate as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """The gradient of a step is scaled down to this norm; null leaves it as it is."""
    state: Literal["fp32", "8bit"] = "fp32"
    """How AdamW's two moments are kept: 8 bytes a trained weight, or 2 (arXiv:2110.02861; tensors of fewer than 4,096
    numbers stay in float32). 8bit needs the extra `truing[qlora]`."""
    in_backward: bool = False
    """Update each weight as soon as its gradient is there, and free that: 4 bytes less for each weight when all are
    trained. Needs `max_grad_norm: null`, and steps of one micro-batch. A step without a finite gradient is then skipped
    only for the weights that it concerns."""

    @model_validator(mode="after")
    def _gradients_are_never_whole(self) -> OptimSettings:
        if self.in_backward and self.max_grad_norm is not None:
            raise ValueError(
                "in_backward never has the whole gradient that max_grad_norm measures; add max_grad_norm: null, or "
                "leave out in_backward"
            )
        return self


class BatchSettings(Settings):
    """What one optimizer step sees, and how much of it at a time. The result does not depend on `micro_tokens`."""

    examples: int | None = Field(default=None, ge=1)
    """Rows in one optimizer step; 8 where `tokens` is not given either. A comparison is one row, but to a reward model
    all comparisons of a prompt are one; rollouts count prompts."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens in one optimizer step instead of a count of rows."""
    micro_tokens: int | None = Field(default=None, ge=1)
    """Tokens computed at once; the knob for memory. A row longer than this is computed alone. Default: 4,096 on a CPU,
    whose caches hold no more, and 8,192 elsewhere."""

    @model_validator(mode="after")
    def _one_of_two(self) -> BatchSettings:
        if self.examples is not None and self.tokens is not None:
            raise ValueError("give batch.examples or batch.tokens, not both")
        return self


class PrecisionSettings(Settings):
    """Number formats. `precision: bf16` is short for `precision: {dtype: bf16}`."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of the base weights and activations; auto keeps the checkpoint's where this machine is fast in it.
    Adapters, optimizer state, log-probs and losses are float32 always; full training in bf16 keeps float32 masters."""
    matmul: Literal["auto", "highest", "medium"] = "auto"
    """How float32 products are computed on a CPU; auto times both and takes the faster if it is as exact."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, much less memory."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"dtype": value} if isinstance(value, str) else value


class ParallelSettings(Settings):
    """How several processes (`--nproc`, `torchrun`) share the work of a recipe. The result does not depend on it."""

    shard: int | Literal["auto", "all"] = "auto"
    """How many processes share one copy of the weights, their gradients and the optimizer's state. 1: each has its own
    copy; all: there is one copy altogether; a number in between makes several copies. With fewer processes than it says
    they share one. auto is 1 where a copy takes less
    than half of the memory that a process has, else all."""

    @field_validator("shard")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("give 1, a divisor of the number of processes, all, or auto")
        return value


class EvaluationSettings(Settings):
    """Measuring on held-out rows (`data.holdout` or `data.eval_path`), and by a judge of answers."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; by default five times over the run. The last step is always evaluated."""
    limit: int = Field(default=200, ge=1)
    """Held-out rows used."""
    judge: str | None = None
    """Scores answers to held-out prompts, of the start and at each evaluation, and trains nothing: a Python function
    (`./rewards.py:fn`), a reward model, or an earlier reward stage by its name. It should not be the reward that is
    trained towards. Guards go by it, and the best state is the one that it scores highest."""
    judge_path: str | None = None
    """Prompts that it is asked about, rows as `data.path` has them; by default those of the held-out rows."""
    judge_completions: int = Field(default=64, ge=2)
    """Answers that it scores each time, spread over as many of the prompts as there are."""
    judge_max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of such an answer at most."""
    judge_temperature: float = Field(default=1.0, ge=0)
    """At which they are sampled; the random numbers are the same each time."""
    judge_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a Python judge may take each time."""


class ForgettingSettings(Settings):
    """What a stage costs elsewhere: loss and divergence on general text that nothing is trained on."""

    path: str | None = None
    """Held-out text: a `.txt` file, whose passages are parted by blank lines, or rows as `data.path` has them for sft.
    Every token counts. Null measures nothing."""
    limit: int = Field(default=64, ge=1)
    """Texts used, the first ones of the file."""
    max_length: int = Field(default=256, ge=2)
    """Tokens of a text at most, or as many as the model has positions for where that is less; the rest is cut."""


class SampleSettings(Settings):
    """Completions of fixed prompts, written while training: a lower loss is not yet a better model."""

    every: int | None = Field(default=None, ge=1)
    """Steps between samples; by default only before the first and after the last step."""
    count: int = Field(default=3, ge=0)
    """How many prompts of the data are used where `prompts` is empty; 0 turns samples off."""
    prompts: tuple[str, ...] = ()
    """Your own prompts, each as one user turn."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Length of a sample at most."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the k likeliest tokens; samples for reading alone, never for training."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that together have this probability; for reading alone."""


class CheckpointSettings(Settings):
    """Saving the state of a run, so that `truing resume` continues it exactly."""

    every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(default=2, ge=2)
    """Checkpoints kept; at least two, so that a damaged one has a predecessor."""
    max_gb: float | None = Field(default=None, gt=0)
    """Space that checkpoints of a stage may take, in 10⁹ bytes: the oldest go first, the last two stay."""

    @property
    def max_bytes(self) -> int | None:
        """`max_gb` in bytes."""
        return None if self.max_gb is None else int(self.max_gb * 1e9)


class ReferenceSettings(Settings):
    """The frozen policy that preference losses compare with: the policy as this stage began."""

    precompute_ref_log_probs: bool | None = None
    """Compute the reference of all rows before training; the default with full weights, where no second model is then
    kept. With LoRA each row's is otherwise computed when it first comes by, and kept where rows come again."""
    cache: str | None = None
    """A folder in which log-probs are kept and shared between runs; by default one in the run directory."""
