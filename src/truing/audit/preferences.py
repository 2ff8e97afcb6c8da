"""Whether labels agree with each other, with scores, and with more than the length of answers; and their balance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from truing.audit.finding import Finding, cleaning, graded, percent
from truing.audit.material import PARTS, Material
from truing.core.interval import Interval
from truing.core.label_weights import automatic_weights
from truing.data.examples import Comparison, Judgement
from truing.data.faults import counted

CONFLICT_WARN, CONFLICT_STRONG = 0.01, 0.05
"""People contradict each other on hard prompts; above 5 % the labels alone limit what can be learned."""

LONGER_WARN, LONGER_STRONG = 0.60, 0.70
"""Share of pairs in which the longer answer wins: length alone can be most of what is learned (arXiv:2310.03716)."""

RATIO_WARN = 1.25
"""Mean length of the chosen answers over that of the rejected: a model trained on these writes longer."""

IMBALANCE = 10.0
"""Up to this ratio weights make up for the rarer kind: KTO held with a tenth of the good answers (arXiv:2402.01306)."""


def contradictions_finding(material: Material) -> Finding | None:
    """The check `contradictions`: preferences in a circle (A over B over A), answers judged both ways."""
    indices = sorted([*_circles(material), *_judged_both_ways(material)])
    if not len(material.comparisons) and not len(material.judgements):
        return None
    share = material.share(indices)
    figures = {"share": share}
    if not indices:
        return Finding("contradictions", "ok", "no label contradicts another", figures=figures)
    rows = material.rows(indices)
    level = graded(share, CONFLICT_WARN, CONFLICT_STRONG)
    return Finding(
        "contradictions",
        level,
        f"{counted(len(rows), 'row')} ({percent(share)}) contradict each other: the same answers of one prompt are "
        "preferred in a circle or judged both ways",
        "" if level == "ok" else cleaning(rows),
        rows,
        material.quotes(indices),
        figures,
    )


def _circles(material: Material) -> list[int]:
    """Comparisons that lie on a circle: both answers in one strongly connected part of their prompt's graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = material.comparisons
    if not len(pairs):
        return []
    numbers: dict[tuple[int, str], int] = {}
    edges = [
        [
            numbers.setdefault((int(material.prompts[index]), material.texts[PARTS * index + part]), len(numbers))
            for part in (1, 2)
        ]
        for index in pairs.tolist()
    ]
    chosen, rejected = np.array(edges).T
    graph = coo_array((np.ones(len(pairs)), (chosen, rejected)), shape=(len(numbers), len(numbers)))
    _, part_of = connected_components(graph.tocsr(), connection="strong")
    inside: list[int] = pairs[part_of[chosen] == part_of[rejected]].tolist()
    return inside


def _judged_both_ways(material: Material) -> list[int]:
    labels: dict[tuple[int, str], set[bool]] = {}
    keys = {}
    for index in material.judgements.tolist():
        example = material.examples[index]
        assert isinstance(example, Judgement)
        keys[index] = (int(material.prompts[index]), material.texts[PARTS * index + 1])
        labels.setdefault(keys[index], set()).add(example.label)
    return [index for index, key in keys.items() if len(labels[key]) == 2]


def margin_finding(material: Material) -> Finding | None:
    """The check `margin`: scored pairs whose chosen answer is not the better one."""
    scored = []
    for index in material.comparisons.tolist():
        example = material.examples[index]
        assert isinstance(example, Comparison)
        if example.margin is not None:
            scored.append((index, example.margin))
    if not scored:
        return None
    ties = [index for index, margin in scored if margin == 0]
    negative = [index for index, margin in scored if margin < 0]
    share = (len(ties) + len(negative)) / len(scored)
    figures = {"share": share, "ties": len(ties) / len(scored), "negative": len(negative) / len(scored)}
    indices = sorted(ties + negative)
    if not indices:
        least = min(margin for _, margin in scored)
        return Finding("margin", "ok", f"all {len(scored):,} margins are above 0, the least {least:g}", figures=figures)
    level = graded(share, CONFLICT_WARN, CONFLICT_STRONG)
    rows = material.rows(indices)
    return Finding(
        "margin",
        level,
        f"{counted(len(ties), 'scored pair')} tied and {len(negative):,} with a margin below 0, where the score "
        f"contradicts the choice ({percent(share)} of those with a margin)",
        "" if level == "ok" else cleaning(rows),
        rows,
        material.quotes(indices),
        figures,
    )


def balance_finding(material: Material) -> Finding | None:
    """The check `balance`: desirable against undesirable judgements."""
    judged = [example for example in material.examples if isinstance(example, Judgement)]
    if not judged:
        return None
    good = sum(example.label for example in judged)
    bad = len(judged) - good
    figures = {"desirable": good, "undesirable": bad, "share": good / len(judged)}
    counts = f"{good:,} desirable and {bad:,} undesirable answers"
    if not good or not bad:
        remedy = "add answers of the other kind"
        if good:
            remedy += "; or train sft on the same file: it learns the desirable answers"
        return Finding("balance", "stop", f"{counts}: nothing to tell apart", remedy, figures=figures)
    weights = automatic_weights(good, bad)
    figures |= {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
    told = f"{counts}; kto weighs them {weights[0]:.3g} and {weights[1]:.3g} by itself"
    if max(good / bad, bad / good) <= IMBALANCE:
        return Finding("balance", "ok", told, figures=figures)
    few = "undesirable" if good > bad else "desirable"
    return Finding(
        "balance",
        "warn",
        f"{told}, which is more than {IMBALANCE:g} to 1: the few carry nearly all of the step",
        f"add {few} answers, or keep fewer of the others; the weights need no setting",
        figures=figures,
    )


def length_bias_finding(material: Material, lengths: npt.NDArray[np.int64], unit: str) -> Finding | None:
    """The check `length_bias`; `lengths` is int64 [E, PARTS] in `unit`."""
    pairs = material.comparisons
    chosen, rejected = lengths[pairs, 1], lengths[pairs, 2]
    differ = chosen != rejected
    if not differ.any():
        return None
    ratio = (chosen.sum() + 1) / (rejected.sum() + 1)
    longer = Interval.of_share(chosen[differ] > rejected[differ], material.prompts[pairs[differ]])
    distance = max(longer.value, 1 - longer.value)
    chance = longer.low <= 0.5 <= longer.high
    level = "ok" if chance else graded(distance, LONGER_WARN, LONGER_STRONG)
    if level == "ok" and max(ratio, 1 / ratio) > RATIO_WARN and _differ_beyond_chance(chosen - rejected):
        level = "warn"
    sentence = (
        f"the longer answer wins {percent(longer.value)} of the pairs ({percent(longer.low)} to {percent(longer.high)})"
        f"; chosen answers have {chosen.mean():.0f} {unit} on average, rejected ones {rejected.mean():.0f}"
    )
    figures = {"share": longer.value, "low": longer.low, "high": longer.high, "ratio": float(ratio)}
    if level == "ok":
        return Finding("length_bias", "ok", sentence, figures=figures)
    following = pairs[(chosen > rejected) == (longer.value > 0.5)].tolist()
    remedy = (
        "train with a loss that does not count length: objective: {use: simpo} or {use: dpo_norm}; of a reward model, "
        "look at how its scores follow length"
    )
    return Finding(
        "length_bias", level, sentence, remedy, material.rows(following), material.quotes(following), figures
    )


def _differ_beyond_chance(differences: npt.NDArray[np.int64]) -> bool:
    """True where the mean of int64 [P] is more than two standard errors from 0."""
    if len(differences) < 2:
        return False
    return bool(abs(differences.mean()) > 2 * differences.std(ddof=1) / np.sqrt(len(differences)))
