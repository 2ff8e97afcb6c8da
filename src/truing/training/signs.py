"""Signs of trouble that are more than a range: pure functions of rows that find one or nothing. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from truing.training.figures import WINDOW, Row, column, fall_of, step_of, trailing_mean
from truing.training.guard_settings import LimitSettings


@dataclass(frozen=True, slots=True)
class Facts:
    """What the judgement of a run needs beside its rows."""

    limits: LimitSettings = field(default_factory=LimitSettings)
    answer_tokens: float | None = None
    """Typical length of an answer in the data; without it nothing is said per token."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A figure that left its healthy range."""

    monitor: str
    """Its name in the recipe's `guards`."""
    metric: str
    step: int
    """The first step at which it is seen; 0: before training."""
    sentence: str
    """What is seen, what it means, what to do."""
    lasting: bool = True
    """Whether it is still so in the last row."""


def skipped(rows: Sequence[Row]) -> Complaint | None:
    """Steps whose loss or gradient is no number, which therefore changed no weight."""
    for metric, name in (("loss", "The loss"), ("grad_norm", "The gradient norm")):
        bad = [step for row in rows if metric in row and row[metric] is None and (step := step_of(row)) is not None]
        if bad:
            more = f", and at {len(bad) - 1} more" if len(bad) > 1 else ""
            return Complaint(
                "skipped",
                metric,
                bad[0],
                f"{name} was not finite at step {bad[0]}{more}; such a step changes no weight. A lower optim.lr, or "
                "precision.dtype fp32, and look at the rows of that step.",
            )
    return None


def not_finite(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """So many such steps in a row that waiting for a better one is in vain."""
    bad = [any(name in row and row[name] is None for name in ("loss", "grad_norm")) for row in rows]
    count = facts.limits.non_finite
    for place in range(count - 1, len(bad)):
        step = step_of(rows[place])
        if step is not None and all(bad[place - count + 1 : place + 1]):
            return Complaint(
                "non_finite",
                "grad_norm",
                step,
                f"{count} steps in a row up to step {step} had no finite gradient. Lower optim.lr, or train in "
                "precision: fp32.",
                lasting=bad[-1],
            )
    return None


def gradient_spike(rows: Sequence[Row], facts: Facts, window: int = 20) -> Complaint | None:
    """A norm many times the median of the `window` norms before it."""
    steps, norms = column(rows, "grad_norm")
    if len(norms) <= window:
        return None
    usual = np.median(sliding_window_view(norms[:-1], window), axis=1)
    spikes = norms[window:] > facts.limits.gradient * usual
    if not spikes.any():
        return None
    place = int(spikes.argmax())
    step = int(steps[window + place])
    return Complaint(
        "gradient",
        "grad_norm",
        step,
        f"The gradient norm was {norms[window + place]:.3g} at step {step}, more than {facts.limits.gradient:g} times "
        f"the {usual[place]:.3g} that was usual before: look at the rows of that step; a longer optim.warmup or a "
        "lower optim.lr if it happens again.",
        lasting=bool(spikes[-1]),
    )


def loss_rises(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """A loss clearly above that of the first step, which nothing had been changed for; of rollouts it means nothing."""
    steps, losses = column(rows, "loss")
    if not len(losses) or losses[0] <= 0 or any("objective/scores" in row for row in rows[-1:]):
        return None
    high = facts.limits.loss * losses[0]
    for metric, name in (("eval_loss", "The loss on held-out rows"), ("loss", "The loss")):
        seen, values = (steps, losses) if metric == "loss" else column(rows, metric)
        if metric == "loss":
            seen, values = seen[2 * WINDOW - 1 :], trailing_mean(values, 2 * WINDOW)[2 * WINDOW - 1 :]
        above = values > high
        if above.any():
            place = int(above.argmax())
            return Complaint(
                "loss",
                metric,
                int(seen[place]),
                f"{name} was {values[place]:.3g} at step {seen[place]}, where the first step had {losses[0]:.3g}: "
                "training makes it worse. A much lower optim.lr.",
                lasting=bool(above[-1]),
            )
    return None


def overfits(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """Held-out loss above its lowest value in two evaluations in a row, while the training loss has fallen since."""
    seen, held_out = column(rows, "eval_loss")
    steps, losses = column(rows, "loss")
    smooth = trailing_mean(losses, 2 * WINDOW)
    for place in range(2, len(held_out)):
        best = int(held_out[: place - 1].argmin())
        high = facts.limits.overfit * held_out[best]
        if held_out[best] <= 0 or not (held_out[place - 1 : place + 1] > high).all() or not len(smooth):
            continue
        then, now = smooth[(np.searchsorted(steps, seen[[best, place]], side="right") - 1).clip(0)]
        if now < then:
            return Complaint(
                "overfit",
                "eval_loss",
                int(seen[place]),
                f"The loss on held-out rows was lowest, {held_out[best]:.3g}, at step {seen[best]} and is "
                f"{held_out[place]:.3g} at step {seen[place]}, while that on training rows goes on falling: they are "
                "learned by heart. Fewer optim.epochs, a lower optim.lr, or more rows.",
            )
    return None


def learned_by_heart(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """Almost every training pair right, while held-out pairs are not, and get no better."""
    for metric in ("rewards/accuracies", "accuracy"):
        steps, train = column(rows, metric)
        seen, held_out = column(rows, f"eval_{metric}")
        smooth = trailing_mean(train, 2 * WINDOW)
        for place in range(1, len(seen)):
            now = smooth[max(0, int(np.searchsorted(steps, seen[place], side="right")) - 1)] if len(smooth) else 0.0
            flat = held_out[place] <= held_out[place - 1] + 0.01
            if now > facts.limits.accuracy and flat and held_out[place] < now - 0.05:
                return Complaint(
                    "by_heart",
                    metric,
                    int(seen[place]),
                    f"At step {seen[place]} {now:.0%} of the training pairs are right, of the held-out ones "
                    f"{held_out[place]:.0%} and no more than before: the pairs are learned by heart. Fewer "
                    "optim.epochs, a lower optim.lr, or more pairs.",
                )
    return None


def stuck_reference_point(rows: Sequence[Row], least: int = 20) -> Complaint | None:
    """KTO's z0, clamped at 0, which never moved or has gone back for good, while good and bad are not told apart.

    Where they are, a z0 of 0 is common: answers to other prompts grow a little less likely in healthy runs too.
    """
    steps, kl = column(rows, "kl")
    _, margins = column(rows, "rewards/margins")
    if len(kl) < least or np.any(kl[len(kl) // 2 :] != 0) or fall_of(-margins) > 0:
        return None
    moved = np.flatnonzero(kl)
    since = int(steps[moved[-1] + 1 if len(moved) else 0])
    return Complaint(
        "kto_reference_point",
        "kl",
        since,
        f"The reference point kl is 0 since step {since}, and the margin of rewards does not grow: the policy is no "
        "nearer to its answers than to mismatched ones. Look at chosen and rejected log-probs; a lower optim.lr.",
    )


def chosen_falls(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """The answers that people preferred become less likely: nats a token, on held-out answers where there are some."""
    if facts.answer_tokens is None or facts.answer_tokens <= 0:
        return None
    limit = facts.limits.chosen
    steps, held_out = column(rows, "eval_logps/chosen")
    if len(held_out) > 1:
        drops = (held_out[0] - held_out) / facts.answer_tokens
        place = int((drops > limit).argmax())
        fall, step = float(drops[place]), int(steps[place])
    else:
        steps, values = column(rows, "logps/chosen")
        fall = fall_of(values) / facts.answer_tokens
        step = int(steps[-1]) if len(steps) else 0
    if fall <= limit:
        return None
    return Complaint(
        "chosen",
        "logps/chosen",
        step,
        f"Chosen answers lost about {fall:.2g} nats a token by step {step}: the margin grows because the rejected ones "
        "fall faster. A lower optim.lr, or apo_zero, which holds the chosen ones up.",
    )


def both_rewards_fall(rows: Sequence[Row]) -> Complaint | None:
    """KTO's sign that the policy leaves its data altogether: the good answers fall at least half as far as the bad."""
    if not any("kl" in row for row in rows):
        return None
    steps, chosen = column(rows, "rewards/chosen")
    _, rejected = column(rows, "rewards/rejected")
    if fall_of(chosen) <= 0 or fall_of(rejected) <= 0 or fall_of(chosen) < 0.5 * fall_of(rejected):
        return None
    return Complaint(
        "kto_rewards",
        "rewards/chosen",
        int(steps[-1]),
        f"By step {steps[-1]} the rewards of desirable and undesirable answers have both fallen: the policy unlearns "
        "both kinds. A lower optim.lr, or a higher beta.",
    )


def length_pays(rows: Sequence[Row], facts: Facts, window: int = 20) -> Complaint | None:
    """Completions that grow while the longer ones are paid better."""
    steps, correlation = column(rows, "rewards/length_correlation")
    _, lengths = column(rows, "completions/length")
    if len(correlation) < window or len(correlation) != len(lengths):
        return None
    grown = trailing_mean(lengths, window) > 1.2 * lengths[:WINDOW].mean()
    paid = trailing_mean(correlation, window)
    found = (paid > facts.limits.reward_length) & grown
    found[: window - 1] = False
    if not found.any():
        return None
    step = int(steps[found.argmax()])
    return Complaint(
        "reward_length",
        "rewards/length_correlation",
        step,
        f"At step {step} completions are a fifth longer than at the start, and reward and length have a correlation of "
        f"{paid[found.argmax()]:.2f}: the reward pays for length. Score length-matched answers, or take a reward that "
        "does not.",
        lasting=bool(found[-1]),
    )


def stops_ending(rows: Sequence[Row], facts: Facts) -> Complaint | None:
    """A share of completions that end themselves which has fallen since the start."""
    for metric, start in (("completions/ended", None), ("judge/end_rate", "start/judge/end_rate")):
        steps, ended = column(rows, metric)
        if start is None:
            began, ended = ended[:WINDOW], trailing_mean(ended, WINDOW)
        else:
            began = column(rows, start)[1]
        if not len(began) or not len(ended):
            continue
        low = ended < began.mean() - facts.limits.end_rate
        if low.any():
            place = int(low.argmax())
            return Complaint(
                "end_rate",
                metric,
                int(steps[place]),
                f"At step {steps[place]} {ended[place]:.0%} of the completions end by themselves, where "
                f"{began.mean():.0%} did at the start: the policy forgets to stop. Look at the end of the samples; a "
                "larger max_new_tokens, or a penalty for answers that are cut.",
                lasting=bool(low[-1]),
            )
    return None
