"""What the held-out judge says against what is trained on: pure functions of rows. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from truing.training.figures import WINDOW, Floats, Row, column, trailing_mean
from truing.training.signs import Complaint

START = "start/"
"""Before the name of a figure of the policy as the stage began; they stand in the first row."""
SCORE, HALF_WIDTH = "judge/score", "judge/half_width"
PROXIES = ("eval_scores", "objective/scores", "eval_rewards/margins", "rewards/margins", "eval_accuracy", "accuracy")
"""What a method is trained towards, held out before training."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The held-out judge's scores, the first at step 0 where the start was judged."""

    steps: Floats  # float64 [n]
    values: Floats  # float64 [n]
    noise: Floats  # float64 [n], half the width of the 95 % interval


def scores_of(rows: Sequence[Row]) -> Scores:
    """Read them out of the rows of a run."""
    steps, values = column(rows, SCORE)
    _, noise = column(rows, HALF_WIDTH)
    _, began = column(rows[:1], START + SCORE)
    _, began_noise = column(rows[:1], START + HALF_WIDTH)
    count = min(len(values), len(noise))
    return Scores(
        np.concatenate([np.zeros(len(began)), steps[:count]]),
        np.concatenate([began, values[:count]]),
        np.concatenate([began_noise[: len(began)], noise[:count]]),
    )


def judge_falls(rows: Sequence[Row]) -> Complaint | None:
    """Two evaluations in a row that lie below the best one before them by more than the noise of both."""
    scores = scores_of(rows)
    for place in range(2, len(scores.values)):
        best = int(scores.values[: place - 1].argmax())
        below = [_is_below(scores, best, each) for each in (place - 1, place)]
        if all(below):
            step = int(scores.steps[place])
            return Complaint(
                "judge_falls",
                SCORE,
                step,
                f"The held-out judge's score fell from {scores.values[best]:.3g} at step {scores.steps[best]:.0f} to "
                f"{scores.values[place]:.3g} at step {step}{_what_rose(rows, scores.steps[best], step)}",
                lasting=_is_below(scores, best, len(scores.values) - 1),
            )
    return None


def judge_gap(rows: Sequence[Row], evaluations: int = 3) -> Complaint | None:
    """What is trained on rises in so many evaluations in a row while the judge's score falls, in all beyond noise."""
    scores = scores_of(rows)
    for place in range(evaluations, len(scores.values)):
        part = slice(place - evaluations, place + 1)
        proxy = _proxy_at(rows, scores.steps[part])
        if proxy is None or not (np.diff(scores.values[part]) < 0).all() or not (np.diff(proxy[1]) > 0).all():
            continue
        if _is_below(scores, place - evaluations, place):
            fall = scores.values[place - evaluations] - scores.values[place]
            name, values = proxy
            step = int(scores.steps[place])
            return Complaint(
                "judge_gap",
                SCORE,
                step,
                f"In {evaluations} evaluations up to step {step} {name} rose from {values[0]:.3g} to {values[-1]:.3g} "
                f"while the held-out judge's score fell by {fall:.3g}: the gap between them grows. Compare the "
                "samples; stop earlier, or hold the policy nearer to its reference.",
            )
    return None


def _is_below(scores: Scores, best: int, place: int) -> bool:
    noise = float(np.hypot(scores.noise[best], scores.noise[place]))
    return bool(scores.values[best] - scores.values[place] > noise)


def _what_rose(rows: Sequence[Row], since: float, step: int) -> str:
    """The end of the sentence: whether what is trained on rose meanwhile."""
    proxy = _proxy_at(rows, np.array([max(since, 1.0), float(step)]))
    if proxy is None or proxy[1][1] <= proxy[1][0]:
        return ": the model gets worse. A lower optim.lr, and look at the samples."
    name, (first, last) = proxy[0], proxy[1]
    return (
        f", while {name} rose from {first:.3g} to {last:.3g}: what is trained on is not what the judge values. Look at "
        "the samples; labels may be swapped, or the reward is being gamed."
    )


def _proxy_at(rows: Sequence[Row], at: Floats) -> tuple[str, Floats] | None:
    """The first proxy that the run has, averaged over a few rows before each step."""
    for metric in PROXIES:
        steps, values = column(rows, metric)
        if len(values) > 1 and steps[0] <= max(1.0, float(at.min())):
            smooth = values if metric.startswith("eval_") else trailing_mean(values, WINDOW)
            places = np.searchsorted(steps, at, side="right") - 1
            return metric, smooth[places.clip(0)]
    return None


def judged_length(rows: Sequence[Row], share: float) -> Complaint | None:
    """Answers to the judge's prompts that are longer or shorter than at the start by more than a share of it."""
    steps, lengths = column(rows, "judge/length")
    _, began = column(rows[:1], f"{START}judge/length")
    if not len(began):
        return None
    outside = np.abs(lengths - began[0]) > share * began[0]
    if not outside.any():
        return None
    place = int(outside.argmax())
    step = int(steps[place])
    return Complaint(
        "length",
        "judge/length",
        step,
        f"At step {step} answers to held-out prompts have {lengths[place]:.3g} tokens, where they had {began[0]:.3g} "
        "at the start. Compare the samples: training may reward length alone, or the model may no longer know when "
        "to stop.",
        lasting=bool(outside[-1]),
    )
