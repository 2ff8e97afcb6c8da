"""The `rollout:` section of a recipe. Free of torch, so that a recipe can be read without it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings
from truing.rl.server_settings import PolicyServerSettings

UNCUT = "is refused while training: a policy's log-probs know nothing of a cut distribution, and what was cut off "
UNCUT += "could never be learned again; use rollout.temperature, or set it for samples: and truing chat"


class RewardSettings(Settings):
    """One reward. A word alone is short for `{use: WORD}`."""

    use: str | tuple[str, ...]
    """A Python function (`./rewards.py:fn`), a reward model (a run, an adapter or a model folder), an earlier stage of
    the recipe by its name, or several reward models that are asked together."""
    weight: float = 1.0
    """What it counts in the sum of all rewards; negative for what is not wanted."""
    normalize: bool | None = None
    """Shift and scale to mean 0 and deviation 1 on samples of the reference; the default for reward models alone."""
    deviations: float = Field(default=1.0, ge=0)
    """Of several models: how many standard deviations between them are taken off their mean."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @property
    def uses(self) -> tuple[str, ...]:
        """`use` as a tuple."""
        return (self.use,) if isinstance(self.use, str) else self.use


class RolloutSettings(Settings):
    """How a policy's own completions are made and scored: for ppo, grpo, rloo, reinforce, online_dpo and best_of_n."""

    rewards: tuple[RewardSettings, ...] = ()
    """What is added up to score a completion, one or a list; by default the reward model of the stage before."""
    group_size: int | None = Field(default=None, ge=1)
    """Completions of each prompt; by default the method's own."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of a completion at most."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of every log-prob of policy and reference while training."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over a rollout; by default the method's own."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps in a pass; each has `batch.examples` prompts, so a rollout has that many times as many."""
    normalize_on: int = Field(default=64, ge=2)
    """Completions of the reference that rewards are normalised on, before the first step."""
    reward_timeout: float = Field(default=60.0, gt=0)
    """Seconds that a Python reward may take for a rollout."""
    server: PolicyServerSettings | None = None
    """A vLLM server that samples in the policy's stead; by default it samples in this process."""
    share_base: bool = True
    """Keep policy, reference, reward and value as adapters over one base where that is possible; otherwise as models of
    their own."""
    value_start: Literal["reward", "policy"] | None = None
    """What the critic's layers start as; by default the reward model where there is one over the same base, else the
    policy. Its head starts at zero."""
    value_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the critic; by default the policy's."""
    top_k: None = None
    """Refused: training samples from the whole distribution."""
    top_p: None = None
    """Refused: training samples from the whole distribution."""
    min_new_tokens: None = None
    """Refused: a forced length is no sample of the policy."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value

    @field_validator("top_k", "top_p", "min_new_tokens", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> None:
        if value is not None:
            raise ValueError(UNCUT)
