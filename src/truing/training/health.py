"""What healthy figures look like, and a plain sentence for each that is not. Free of torch.

Pure functions of the rows of metrics.jsonl, so that a run can be judged while it trains and from its folder alone. The
ranges are rules of thumb from the methods' papers and common practice: where a curve leaves its range, look; no run is
wrong by that alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

ENTROPY = "entropy per token"
"""Derived: the entropy of a completion, `objective/entropy`, divided by its length."""

WINDOW = 5
"""Rows that a figure is averaged over before it is judged: one batch's excursion is noise."""


LARGEST = 1e100
"""Figures beyond it are taken for it, so that sums and squares stay finite."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgement of a run needs beside its rows."""

    kl_budget: float = 10.0
    """Nats a completion."""
    answer_tokens: float | None = None
    """Typical length of an answer in the data; without it nothing is said per token."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A figure that left its healthy range."""

    metric: str
    step: int
    """The first step at which it is seen."""
    sentence: str
    """What is seen, what it means, what to do."""


@dataclass(frozen=True, slots=True)
class Band:
    """The healthy range of a figure, and the range outside of which it is worth a sentence."""

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
        smooth = trailing_mean(values, WINDOW)[self.grace :]
        steps = steps[self.grace :]
        low = -math.inf if self.warn_low is None else self.warn_low * scale
        high = math.inf if self.warn_high is None else self.warn_high * scale
        outside = (smooth < low) | (smooth > high)
        if self.unit == "start":
            outside[: 2 * WINDOW] = False  # the start itself
        if not outside.any():
            return None
        first = int(outside.argmax())
        above = bool(smooth[first] > high)
        bound = f"{high if above else low:.3g}".replace("-", "−")
        found = f"{self.name} {'rose above' if above else 'fell below'} {bound}"
        since = "and is still there at the end" if outside[-1] else "and came back"
        return Complaint(self.metric, int(steps[first]), f"{found} at step {steps[first]} {since}: {self.remedy}")

    def _scale(self, values: Floats) -> float:
        return 1.0 if self.unit == "itself" or not len(values) else float(values[:WINDOW].mean())


BANDS = (
    Band(
        ENTROPY, "Entropy per token", 0.8, 1.05, 0.5, 1.5,
        "below half of where it began the policy repeats itself, far above it writes noise. Look at the samples; a "
        "higher kl_coef, or a lower optim.lr, holds it.",
        unit="start",
    ),
    Band(
        "completions/length", "The length of completions", 0.8, 1.2, 0.5, 1.5,
        "the reward may pay for length alone. Compare the samples, and score length-matched answers.",
        unit="start",
    ),
    Band(
        "val/ratio", "The mean ratio of new to old policy", 0.95, 1.05, 0.9, 1.1,
        "it is 1 on average while the samples still fit the policy. Fewer rollout.epochs, or a lower optim.lr.",
    ),
    Band(
        "policy/approxkl", "The approximate KL of an update", 0.0, 0.02, None, 0.05,
        "one rollout moves the policy too far. A lower optim.lr, fewer rollout.epochs, or larger batches.",
    ),
    Band(
        "policy/clipfrac", "The clip fraction", 0.0, 0.2, None, 0.3,
        "most of the gradient is clipped away. A lower optim.lr, or fewer rollout.epochs.",
    ),
    Band(
        "val/explained_variance", "The explained variance of the values", 0.3, 1.0, -0.05, None,
        "the critic is worse than a constant. A higher rollout.value_lr, or some steps of objective.value_warmup.",
        grace=10,
    ),
    Band(
        "rewards/equal_groups", "The share of groups in which all rewards are equal", 0.0, 0.5, None, 0.5,
        "those groups teach nothing. Take prompts of middling difficulty, a larger rollout.group_size, or a finer "
        "reward.",
        unless="val/explained_variance",  # a critic does not compare within groups
    ),
)  # fmt: skip


def band_of(metric: str, facts: Facts) -> Band | None:
    """The band of a figure, if it has one."""
    if metric == "objective/kl":
        return _kl_band(facts)
    return next((band for band in BANDS if band.metric == metric), None)


def complaints(rows: Sequence[Row], facts: Facts | None = None) -> list[Complaint]:
    """Everything that is worth a sentence, in the order of the steps. Values that are null count as not finite."""
    facts = facts or Facts()
    found = [band.complaint(rows) for band in (_kl_band(facts), *BANDS)]
    found += [_not_finite(rows), _gradient_spike(rows), _learned_by_heart(rows), _stuck_reference_point(rows)]
    found += [_chosen_falls(rows, facts), _both_rewards_fall(rows)]
    return sorted((each for each in found if each is not None), key=lambda each: each.step)


def column(rows: Sequence[Row], metric: str) -> tuple[npt.NDArray[np.int64], Floats]:
    """Steps and finite values of a figure, or of the derived one: int64 [n], float64 [n]."""
    if metric == ENTROPY:
        found = [_quotient(row, "objective/entropy", "completions/length") for row in rows]
    else:
        found = [row.get(metric) for row in rows]
    values = _floats(found)
    here = np.flatnonzero(np.isfinite(values))
    steps = _floats([rows[place].get("step") for place in here.tolist()])
    said = (np.abs(steps) < 2**53) & (steps == np.floor(steps))
    return steps[said].astype(np.int64), values[here[said]].clip(-LARGEST, LARGEST)


def _floats(found: Sequence[object]) -> Floats:
    """The finite numbers among what stands in a column of rows, and NaN for the rest: float64 [n]."""
    plain = set(map(type, found)) <= {float, int, type(None)}
    with contextlib.suppress(OverflowError):  # of an integer beyond 1e308
        if plain:  # nearly always: ten times as fast
            return np.array(found, dtype=float)
    return np.array([math.nan if (value := number(each)) is None else value for each in found])


def number(value: object) -> float | None:
    """A finite number, or None for whatever else a damaged row may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return max(-LARGEST, min(LARGEST, float(value))) if math.isfinite(value) else None
    except OverflowError:
        return None


def step_of(row: Row) -> int | None:
    """The step of a row, if it says one."""
    step = row.get("step")
    return step if type(step) is int and abs(step) < 2**62 else None


def trailing_mean(values: Floats, window: int) -> Floats:
    """The mean of each value and up to `window` - 1 before it: float64 [n].

    >>> trailing_mean(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist()
    [2.0, 3.0, 5.0, 7.0]
    """
    begun = [values[: place + 1].mean() for place in range(min(window - 1, len(values)))]
    if len(values) < window:
        return np.array(begun, dtype=float)
    return np.concatenate([begun, sliding_window_view(values, window).mean(axis=1)])


def _quotient(row: Row, above: str, below: str) -> float | None:
    numerator, denominator = number(row.get(above)), number(row.get(below))
    return None if numerator is None or not denominator else numerator / denominator


def _kl_band(facts: Facts) -> Band:
    return Band(
        "objective/kl", "KL to the reference in nats a completion", 0.0, facts.kl_budget, None, facts.kl_budget,
        "beyond its budget a rising reward is less and less to be trusted. Raise kl_coef, set kl_budget, or stop "
        "earlier.",
    )  # fmt: skip


def _not_finite(rows: Sequence[Row]) -> Complaint | None:
    for metric, name in (("loss", "The loss"), ("grad_norm", "The gradient norm")):
        bad = [step for row in rows if metric in row and row[metric] is None and (step := step_of(row)) is not None]
        if bad:
            more = f", and at {len(bad) - 1} more" if len(bad) > 1 else ""
            return Complaint(
                metric,
                bad[0],
                f"{name} was not finite at step {bad[0]}{more}; such a step changes no weight. A lower optim.lr, or "
                "precision.dtype fp32, and look at the rows of that step.",
            )
    return None


def _gradient_spike(rows: Sequence[Row], window: int = 20) -> Complaint | None:
    """A norm ten times the median of the `window` norms before it."""
    steps, norms = column(rows, "grad_norm")
    if len(norms) <= window:
        return None
    usual = np.median(sliding_window_view(norms[:-1], window), axis=1)
    spikes = norms[window:] > 10 * usual
    if not spikes.any():
        return None
    place = int(spikes.argmax())
    step = int(steps[window + place])
    return Complaint(
        "grad_norm",
        step,
        f"The gradient norm was {norms[window + place]:.3g} at step {step}, more than ten times the "
        f"{usual[place]:.3g} that was usual before: look at the rows of that step; a longer optim.warmup or a lower "
        "optim.lr if it happens again.",
    )


def _learned_by_heart(rows: Sequence[Row]) -> Complaint | None:
    """Almost every training pair right, while held-out pairs are not, and get no better."""
    for metric in ("rewards/accuracies", "accuracy"):
        steps, train = column(rows, metric)
        seen, held_out = column(rows, f"eval_{metric}")
        smooth = trailing_mean(train, 2 * WINDOW)
        for place in range(1, len(seen)):
            now = smooth[max(0, int(np.searchsorted(steps, seen[place], side="right")) - 1)] if len(smooth) else 0.0
            flat = held_out[place] <= held_out[place - 1] + 0.01
            if now > 0.95 and flat and held_out[place] < now - 0.05:
                return Complaint(
                    metric,
                    int(seen[place]),
                    f"At step {seen[place]} {now:.0%} of the training pairs are right, of the held-out ones "
                    f"{held_out[place]:.0%} and no more than before: the pairs are learned by heart. Fewer "
                    "optim.epochs, a lower optim.lr, or more pairs.",
                )
    return None


def _stuck_reference_point(rows: Sequence[Row], least: int = 10) -> Complaint | None:
    """KTO's z0, clamped at 0, which never moved or has gone back for good."""
    steps, kl = column(rows, "kl")
    if len(kl) < least or np.any(kl[len(kl) // 2 :] != 0):
        return None
    moved = np.flatnonzero(kl)
    since = int(steps[moved[-1] + 1 if len(moved) else 0])
    return Complaint(
        "kl",
        since,
        f"The reference point kl is 0 since step {since}: the policy is no nearer to its answers than to mismatched "
        "ones, and the loss compares with nothing. Look at chosen and rejected log-probs; a lower optim.lr.",
    )


def _chosen_falls(rows: Sequence[Row], facts: Facts, limit: float = 0.1) -> Complaint | None:
    """The answers that people preferred become less likely: nats a token, on held-out answers where there are some."""
    if facts.answer_tokens is None or facts.answer_tokens <= 0:
        return None
    steps, held_out = column(rows, "eval_logps/chosen")
    if len(held_out) > 1:
        drops = (held_out[0] - held_out) / facts.answer_tokens
        place = int((drops > limit).argmax())
        fall, step = float(drops[place]), int(steps[place])
    else:
        steps, values = column(rows, "logps/chosen")
        fall = _fall(values) / facts.answer_tokens
        step = int(steps[-1]) if len(steps) else 0
    if fall <= limit:
        return None
    return Complaint(
        "logps/chosen",
        step,
        f"Chosen answers lost about {fall:.2g} nats a token by step {step}: the margin grows because the rejected ones "
        "fall faster. A lower optim.lr, or apo_zero, which holds the chosen ones up.",
    )


def _both_rewards_fall(rows: Sequence[Row]) -> Complaint | None:
    """KTO's sign that the policy leaves its data altogether."""
    if not any("kl" in row for row in rows):
        return None
    steps, chosen = column(rows, "rewards/chosen")
    _, rejected = column(rows, "rewards/rejected")
    if _fall(chosen) <= 0 or _fall(rejected) <= 0:
        return None
    return Complaint(
        "rewards/chosen",
        int(steps[-1]),
        f"By step {steps[-1]} the rewards of desirable and undesirable answers have both fallen: the policy unlearns "
        "both kinds. A lower optim.lr, or a higher beta.",
    )


def _fall(values: Floats) -> float:
    """How far the last tenth of the values lies below the first, where that is more than two standard errors; or 0."""
    part = max(WINDOW, len(values) // 10)
    if len(values) < 2 * part:
        return 0.0
    first, last = values[:part], values[-part:]
    fall = float(first.mean() - last.mean())
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / part)
    return fall if fall > 2 * error else 0.0
