"""How many labels are the wrong way round, estimated from where a classifier is sure and the label disagrees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from truing.audit.finding import Finding, percent
from truing.audit.material import Material
from truing.audit.shortcut import Scores
from truing.core.interval import Interval

RATES = np.linspace(0.0, 0.495, 100)
"""Flip rates that are tried; at a half nothing can be told."""

SCALES = np.exp(np.linspace(-3.0, 3.0, 61))
"""Factors from a margin, in units of the median one, to errors of a margin."""

TAILS = (2.0, 3.0, 4.0, 8.0, np.inf)
"""Degrees of freedom of Student's t that are tried for those errors; infinitely many are a normal distribution's."""

BINS = 200
"""Groups of pairs with like margins that the likelihood is summed over."""

DROP = 1.92
"""How far the log-likelihood falls inside a 95 % interval of one parameter (half of chi-square's 3.84)."""

WEAKEST, WIDEST = 0.60, 0.25
"""An estimate is only told where the classifier is right more often than this, and the interval narrower than that."""

NOISY = 0.05
"""Flip rates above which a loss that allows for them pays (cDPO, robust DPO, IPO)."""

SUSPECTS = 0.1
"""Share of the noise's most suspicious pairs that the finding lists."""


def noise_finding(material: Material, scores: Scores | None) -> Finding | None:
    """The check `noise`; it has no figures where the classifier is too weak for an estimate."""
    if scores is None:
        return None
    rate = estimate(scores.margins)
    if scores.right.low < WEAKEST or rate.high - rate.low > WIDEST:
        told = "no estimate of flipped labels: single words say too little about which answer is better"
        return Finding("noise", "ok", told)
    figures = {"share": rate.value, "low": rate.low, "high": rate.high}
    told = f"an estimated {percent(rate.value)} of the labels are the wrong way round"
    told += f" ({percent(rate.low)} to {percent(rate.high)})"
    if rate.low <= NOISY:
        return Finding("noise", "ok", told, figures=figures)
    order = scores.pairs[np.argsort(scores.margins)]
    suspects = order[: max(1, int(SUSPECTS * rate.value * len(order)))].tolist()
    return Finding(
        "noise",
        "warn",
        f"{told}; quoted are those that the words contradict most",
        f"objective: {{use: cdpo, label_smoothing: {rate.value:.2f}}} (or robust with the same value; or ipo)",
        material.rows(suspects),
        material.quotes(suspects),
        figures,
    )


def estimate(margins: npt.NDArray[np.float64]) -> Interval:
    """The flip rate ε that explains best how often held-out margins (float64 [P]) have the label's sign.

    A label agrees with probability (1 − ε) F(a|m|) + ε (1 − F(a|m|)): natural doubt shrinks as a pair becomes clear, a
    flip does not, so ε is what remains among the clearest pairs (Natarajan et al. 2013 for the noise model; the margins
    are out of fold as in confident learning, arXiv:1911.00068).

    F is how a margin's error is distributed, which is how likely a pair is the right way round where all true margins
    within the error's reach are as common. It is not one normal distribution: a pair of rare words has a larger error
    than one of common ones, and normal distributions of inverse-gamma variances mix to Student's t. Were F taken to
    have lighter tails than it has, as a logistic curve does, the pairs that the classifier is sure of and wrong about
    would all count as flips. So tail and scale are fitted with ε, by maximum likelihood. The interval is that of the
    profile likelihood, and the value its mean, for the tail is often told too badly to take one alone.

    Assumes that flips do not depend on the text.
    """
    from scipy.special import stdtr

    size = np.abs(margins)
    typical = float(np.median(size)) or 1.0
    order = np.argsort(size)
    groups = np.array_split(order, min(BINS, len(order)))
    clarity = np.array([size[group].mean() for group in groups]) / typical  # [G]
    agree = np.array([(margins[group] > 0).sum() for group in groups])
    differ = np.array([len(group) for group in groups]) - agree
    clear = np.concatenate([stdtr(tail, SCALES[:, None] * clarity) for tail in TAILS])  # [T · S, G]
    profile = np.empty(len(RATES))
    for place, rate in enumerate(RATES):
        chance = np.clip(rate + (1 - 2 * rate) * clear, 1e-12, 1 - 1e-12)
        profile[place] = (np.log(chance) @ agree + np.log1p(-chance) @ differ).max()
    likely = RATES[profile >= profile.max() - DROP]
    weights = np.exp(profile - profile.max())
    return Interval(float(weights @ RATES / weights.sum()), float(likely[0]), float(likely[-1]))
