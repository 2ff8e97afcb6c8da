"""What healthy figures look like, and a plain sentence for each that is not. Free of torch.

Pure functions of the rows of metrics.jsonl, so that a run can be judged while it trains and from its folder alone. The
ranges are rules of thumb from the methods' papers and common practice: where a curve leaves its range, look; no run is
wrong by that alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from truing.training import judge_signs, signs
from truing.training.figures import ENTROPY, WINDOW, Floats, Row, column, trailing_mean
from truing.training.guard_settings import LimitSettings
from truing.training.signs import Complaint, Facts


@dataclass(frozen=True, slots=True)
class Band:
    """The healthy range of a figure, and the range outside of which it is worth a sentence."""

    monitor: str
    """Its name in the recipe's `guards`."""
    metric: str
    name: str
    low: float | None
    high: float | None
    warn_low: float | None
    warn_high: float | None
    remedy: str
    """What leaving it means and what to do; ends the sentence."""
    unit: Literal["itself", "start"] = "itself"
    """Whether the bounds are values, or multiples of the mean over the first rows."""
    grace: int = 0
    """Rows at the beginning that are not judged."""
    unless: str | None = None
    """A figure in whose presence nothing is wrong with leaving the range."""

    def bounds(self, rows: Sequence[Row]) -> tuple[float | None, float | None]:
        """The healthy range in the figure's own unit, given the rows of the run."""
        scale = self._scale(column(rows, self.metric)[1])
        return (None if self.low is None else self.low * scale, None if self.high is None else self.high * scale)

    def complaint(self, rows: Sequence[Row]) -> Complaint | None:
        """Where the figure, averaged over `WINDOW` rows, first leaves the outer range."""
        steps, values = column(rows, self.metric)
        scale = self._scale(values)
        if scale <= 0 or (self.unless is not None and any(self.unless in row for row in rows)):
            return None
        begun = max(self.grace, WINDOW - 1)
        smooth, steps = trailing_mean(values, WINDOW)[begun:], steps[begun:]
        low = -math.inf if self.warn_low is None else self.warn_low * scale
        high = math.inf if self.warn_high is None else self.warn_high * scale
        outside = (smooth < low) | (smooth > high)
        if self.unit == "start":
            outside[:WINDOW] = False  # the start itself
        if not outside.any():
            return None
        first = int(outside.argmax())
        above = bool(smooth[first] > high)
        bound = f"{high if above else low:.3g}".replace("-", "−")
        found = f"{self.name} {'rose above' if above else 'fell below'} {bound}"
        since = "and is still there at the end" if outside[-1] else "and came back"
        return Complaint(
            self.monitor,
            self.metric,
            int(steps[first]),
            f"{found} at step {steps[first]} {since}: {self.remedy}",
            lasting=bool(outside[-1]),
        )

    def _scale(self, values: Floats) -> float:
        return 1.0 if self.unit == "itself" or not len(values) else float(values[:WINDOW].mean())


def bands(limits: LimitSettings) -> tuple[Band, ...]:
    """All ranges; of several for one figure the first is the one that is shown."""
    return (
        Band(
            "kl", "objective/kl", "KL to the reference in nats a completion", 0.0, limits.kl, None, limits.kl,
            "beyond its budget a rising reward is less and less to be trusted. Raise kl_coef, set kl_budget, or stop "
            "earlier.",
        ),
        Band(
            "kl_twice", "objective/kl", "KL to the reference in nats a completion", 0.0, limits.kl, None, 2 * limits.kl,
            "twice its budget. Go back to an earlier checkpoint, and raise kl_coef.",
        ),
        Band(
            "entropy", ENTROPY, "Entropy per token", 0.8, 1.05, limits.entropy, 2 - limits.entropy,
            "far below where it began the policy repeats itself, far above it writes noise. Look at the samples; a "
            "higher kl_coef, or a lower optim.lr, holds it.",
            unit="start",
        ),
        Band(
            "length", "completions/length", "The length of completions", 0.8, 1.2, 1 - limits.length, 1 + limits.length,
            "the reward may pay for length alone. Compare the samples, and score length-matched answers.",
            unit="start",
        ),
        Band(
            "ratio", "val/ratio", "The mean ratio of new to old policy", 0.95, 1.05, 0.9, 1.1,
            "it is 1 on average while the samples still fit the policy. Fewer rollout.epochs, or a lower optim.lr.",
        ),
        Band(
            "update_kl", "policy/approxkl", "The approximate KL of an update", 0.0, 0.02, None, 0.05,
            "one rollout moves the policy too far. A lower optim.lr, fewer rollout.epochs, or larger batches.",
        ),
        Band(
            "clip_fraction", "policy/clipfrac", "The clip fraction", 0.0, 0.2, None, 0.3,
            "most of the gradient is clipped away. A lower optim.lr, or fewer rollout.epochs.",
        ),
        Band(
            "critic", "val/explained_variance", "The explained variance of the values", 0.3, 1.0, -0.05, None,
            "the critic is worse than a constant. A higher rollout.value_lr, or some steps of objective.value_warmup.",
            grace=10,
        ),
        Band(
            "equal_groups", "rewards/equal_groups", "The share of groups in which all rewards are equal",
            0.0, limits.equal_groups, None, limits.equal_groups,
            "those groups teach nothing. Take prompts of middling difficulty, a larger rollout.group_size, or a finer "
            "reward.",
            unless="val/explained_variance",  # a critic does not compare within groups
        ),
        Band(
            "margin", "rewards/margins", "The margin of rewards", None, None, None, limits.margin,
            "nothing is left to learn from such pairs but to push further. A lower optim.lr, fewer optim.epochs, or a "
            "higher beta.",
        ),
    )  # fmt: skip


def band_of(metric: str, facts: Facts) -> Band | None:
    """The band of a figure, if it has one."""
    return next((band for band in bands(facts.limits) if band.metric == metric), None)


def complaints(rows: Sequence[Row], facts: Facts | None = None) -> list[Complaint]:
    """Everything that is worth a sentence, in the order of the steps. Values that are null count as not finite."""
    facts = facts or Facts()
    found = [band.complaint(rows) for band in bands(facts.limits)]
    found += [
        signs.skipped(rows),
        signs.not_finite(rows, facts),
        signs.gradient_spike(rows, facts),
        signs.loss_rises(rows, facts),
        signs.overfits(rows, facts),
        signs.learned_by_heart(rows, facts),
        signs.stuck_reference_point(rows),
        signs.chosen_falls(rows, facts),
        signs.both_rewards_fall(rows),
        signs.length_pays(rows, facts),
        signs.stops_ending(rows, facts),
        judge_signs.judge_falls(rows),
        judge_signs.judge_gap(rows),
        judge_signs.judged_length(rows, facts.limits.length),
    ]
    return sorted((each for each in found if each is not None), key=lambda each: each.step)
