"""The `guards:` section of a recipe: what is watched while training, and what follows. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings

Action = Literal["off", "warn", "lower", "stop", "restore"]
"""What a complaint leads to, from the weakest to the strongest."""
Before = Literal["off", "warn", "stop"]
"""What a complaint leads to that is known before the first step."""


class LimitSettings(Settings):
    """Where a figure counts as no longer healthy."""

    kl: float = Field(default=10.0, gt=0)
    """Nats a completion from the reference; a method's own kl_budget goes before it."""
    length: float = Field(default=0.5, gt=0, lt=1)
    """Share of its start by which the length of completions may grow or shrink."""
    reward_length: float = Field(default=0.5, gt=0, lt=1)
    """Correlation of reward and length, where completions grow."""
    end_rate: float = Field(default=0.25, gt=0, lt=1)
    """By how much the share of completions that end may fall."""
    entropy: float = Field(default=0.5, gt=0, lt=1)
    """Share of its start by which the entropy of a token may fall or rise."""
    equal_groups: float = Field(default=0.5, gt=0, le=1)
    """Share of groups in which all rewards are equal."""
    gradient: float = Field(default=10.0, gt=1)
    """Times the median of the 20 gradient norms before."""
    non_finite: int = Field(default=3, ge=1)
    """Steps in a row without a finite gradient."""
    loss: float = Field(default=1.3, gt=1)
    """Times the loss of the first step, as the mean of ten steps or on held-out rows."""
    overfit: float = Field(default=1.1, gt=1)
    """Times the lowest loss on held-out rows, in two evaluations in a row."""
    accuracy: float = Field(default=0.95, gt=0.5, le=1)
    """Share of training pairs that are right, while held-out ones get no better."""
    margin: float = Field(default=10.0, gt=0)
    """Margin of implicit rewards: at 10 the loss of a pair is 0.00005."""
    chosen: float = Field(default=0.1, gt=0)
    """Nats a token that chosen answers may lose."""
    duplicates: float = Field(default=0.2, gt=0, le=1)
    """Share of the rows that repeat an earlier one exactly."""


class GuardSettings(Settings):
    """What is watched while training, and what a monitor that complains does.

    `warn` says it once. `lower` also halves the learning rate from there on, again while the figure stays outside.
    `stop` saves the state and ends with exit code 3. `restore` ends training with the best state by the held-out judge,
    else by the loss on held-out rows, else by the rewards on held-out prompts. `guards: off` switches all off but
    `non_finite`.
    """

    non_finite: Literal["lower", "stop", "restore"] = "stop"
    """The gradient was not finite in several steps in a row; such steps change no weight."""
    skipped: Action = "warn"
    """The gradient of a step was not finite."""
    kl: Action = "warn"
    """The policy is further from the reference than its budget."""
    kl_twice: Action = "lower"
    """It is twice as far as its budget."""
    judge_falls: Action = "restore"
    """The held-out judge's score fell beyond its noise, in two evaluations in a row."""
    judge_gap: Action = "warn"
    """What is trained on rises in three evaluations in a row in which the held-out judge's score falls."""
    loss: Action = "warn"
    """The loss is clearly above that of the first step."""
    overfit: Action = "warn"
    """The loss on held-out rows rises while that on training rows falls."""
    by_heart: Action = "warn"
    """Almost all training pairs are right, while held-out ones are not and get no better."""
    gradient: Action = "warn"
    """A gradient far larger than those before."""
    margin: Action = "warn"
    """Margins so large that nothing is left to learn from their pairs."""
    chosen: Action = "warn"
    """Chosen answers become much less likely."""
    kto_rewards: Action = "warn"
    """The rewards of desirable and undesirable answers both fall."""
    kto_reference_point: Action = "warn"
    """KTO's reference point stays at 0."""
    length: Action = "warn"
    """Completions are much longer or shorter than at the start."""
    reward_length: Action = "warn"
    """Completions grow, and the longer ones are paid better."""
    end_rate: Action = "warn"
    """Fewer completions come to an end than at the start."""
    entropy: Action = "warn"
    """The policy repeats itself, or writes noise."""
    equal_groups: Action = "warn"
    """In most groups all completions are paid the same, which teaches nothing."""
    ratio: Action = "warn"
    """New and old policy disagree about the samples."""
    update_kl: Action = "warn"
    """One rollout moves the policy too far."""
    clip_fraction: Action = "warn"
    """Most of the gradient is clipped away."""
    critic: Action = "warn"
    """The critic is worse than a constant."""
    duplicates: Before = "warn"
    """Many rows repeat an earlier one."""
    template: Before = "warn"
    """Conversations are rendered otherwise than the start's own chat template renders them."""
    limits: LimitSettings = LimitSettings()
    """Where a figure counts as no longer healthy."""

    @model_validator(mode="before")
    @classmethod
    def _all_off(cls, value: Any) -> Any:
        if value not in (False, "off"):
            return value
        return dict.fromkeys((name for name in cls.model_fields if name not in ("non_finite", "limits")), "off")

    @field_validator("*", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    def restoring(self, *, judged: bool) -> tuple[str, ...]:
        """The monitors that may restore the best state, in a run with or without a held-out judge."""
        names = (name for name in type(self).model_fields if name != "limits" and self.action(name) == "restore")
        return tuple(name for name in names if judged or not name.startswith("judge_"))

    def action(self, monitor: str) -> Action:
        """What a monitor does when it complains."""
        found: Action = getattr(self, monitor)
        return found
