"""Floating-point operations of a step by part, and seconds at a rate; a multiplication and addition count as two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from truing.planner.architecture import Architecture
from truing.planner.setting import Setting, Work

UTILISATION = 0.4
"""Share of a device's rate for plain products that a whole step reaches. Well-fed GPUs reach 0.4 to 0.7; small models
and short rows reach less, so that a run tells its own after the first steps."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step computes, and how long a run takes."""

    parts: Mapping[str, float]
    """Floating-point operations of an optimizer step by part."""
    steps: int
    rate: float | None
    """Operations a second of plain products on the device; None where it is not known."""

    @property
    def step(self) -> float:
        """Operations of a step."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float | None:
        """Of the whole run, at `UTILISATION` of the rate."""
        return None if self.rate is None else self.steps * self.step / (self.rate * UTILISATION)


def cost_of(model: Architecture, setting: Setting, work: Work, rate: float | None) -> Cost:
    """Count a step: forward 2, backward 4 (2 where the weights are frozen), recomputation 2 for each weight and token.

    Attention counts 4 for each pair and each number of a head forward, 2.5 times that backward.
    """
    body = model.body_numbers * work.tokens
    pairs = 4 * model.query * model.layers * work.attended
    head = 0 if setting.method.scores else model.head_numbers * work.targets
    again, method = int(setting.checkpointing), setting.method
    backward = 2 if setting.adapter is not None else 4
    parts = {
        "body": (2 + backward + 2 * again) * body,
        "attention": (3 + again) * pairs,
        "vocabulary": (2 + (2 if setting.adapter is not None else 6)) * head,
    }
    forward = 2 * body + pairs + 2 * head
    if method.ahead:
        parts["looking ahead"] = forward
    if method.critic:
        parts["critic"] = parts["body"] + parts["attention"]
    rollout = 1 / method.epochs if method.rollouts else 1.0
    if method.reference:
        parts["reference"] = forward * rollout
    if method.rollouts:
        # Prompts are computed once and every written token attends to what is there: one forward pass in all.
        written = forward + (0 if setting.base == "fp32" else forward)  # captured log-probs are exact in float32 alone
        parts["writing"] = written * rollout
        values = 2 * body + pairs if method.critic else 0.0
        parts["scoring"] = (values + setting.reward_models * (2 * body + pairs)) * rollout
    return Cost({name: value for name, value in parts.items() if value > 0}, work.steps, rate)
