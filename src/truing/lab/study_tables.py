"""Tables of a study, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from truing.lab.arms import Arm, Experiment, Outcome
from truing.lab.experiment import by_arm
from truing.lab.laws import fits
from truing.lab.study_settings import FigureSettings
from truing.lab.summary import Interval, Summary


def study_tables(
    figures: Sequence[FigureSettings], experiment: Experiment, summary: Summary, outcomes: Sequence[Outcome]
) -> list[str]:
    """A table a figure, in its order, and one of all arms."""
    lines: list[str] = []
    for asked in figures:
        if asked.use == "lines":
            for measure in asked.y:
                lines += _crossed(asked, measure, experiment, by_arm(outcomes))
        if asked.use == "overoptimisation":
            lines += _laws(experiment, outcomes)
    return [*lines, *_all_arms(summary)]


def _all_arms(summary: Summary) -> list[str]:
    lines = [
        "## All arms",
        "",
        "| arm | true reward | minus sft | KL | regret | rows read | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary.rows:
        gain, cost = f"{row.gain.mean:+.3f} ± {row.gain.half:.3f}", f"{row.rows:,} | {row.seconds:.1f}"
        lines.append(f"| {row.arm} | {row.reward} | {gain} | {row.kl:.2f} | {row.regret:.3f} | {cost} |")
    return [*lines, ""]


def _crossed(
    asked: FigureSettings, measure: str, experiment: Experiment, arms: Mapping[str, Sequence[Outcome]]
) -> list[str]:
    """What a figure of lines shows: a row a line, a column a place along the axis."""
    tagged = [arm for arm in experiment.arms if asked.by in arm.tags]
    places = sorted({float(arm.tags[asked.x]) for arm in tagged if asked.x in arm.tags})
    lines = [
        f"## {measure} against {asked.x_label or asked.x}",
        "",
        f"| {asked.by} | " + " | ".join(map(_short, places)) + " |",
    ]
    lines.append("|---|" + "---|" * len(places))
    of_line: dict[str, list[Arm]] = {}
    for arm in tagged:
        of_line.setdefault(str(arm.tags[asked.by]), []).append(arm)
    cells = {name: [_values(own, asked.x, place, measure, arms) for place in places] for name, own in of_line.items()}
    for name, found in cells.items():
        lines.append(f"| {name} | {' | '.join(str(Interval.of(values)) if values else '' for values in found)} |")
    first, *others = cells
    for name in others:
        columns = zip(cells[name], cells[first], strict=True)
        lines.append(f"| {name} − {first} | {' | '.join(_difference(a, b) for a, b in columns)} |")
    if others:
        lines += ["", "Differences are paired by seed; `*` where the interval excludes 0."]
    return [*lines, ""]


def _difference(values: Sequence[float], start: Sequence[float]) -> str:
    if not values or not start:
        return ""
    found = Interval.of([a - b for a, b in zip(values, start, strict=True)])
    return f"{found.mean:+.3f} ± {found.half:.3f}{'*' if found.excludes_zero else ''}"


def _values(
    own: Sequence[Arm], x: str, place: float, measure: str, arms: Mapping[str, Sequence[Outcome]]
) -> list[float]:
    """A line's values at a place, one a seed; a line that is not varied has the same everywhere."""
    fitting = [arm for arm in own if x not in arm.tags or float(arm.tags[x]) == place]
    return values_of(arms[fitting[0].name], measure) if fitting else []


def values_of(found: Sequence[Outcome], measure: str) -> list[float]:
    """A measure of an arm, a value a seed; of a reward model, what the best of 16 by it gives."""
    if measure in ("reward", "kl"):
        return [fmean(getattr(_policy(outcome), measure)) for outcome in found]
    if measure == "forgetting":
        return [one.figures["forgetting/loss_after"] - one.figures["forgetting/loss_before"] for one in found]
    return [outcome.figures[measure] for outcome in found]


def _policy(outcome: Outcome, count: int = 16) -> object:
    return next(one for one in outcome.best_of if one.count == count) if outcome.best_of else outcome


def _laws(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "## Fitted laws",
        "",
        "d = √KL from the reference; best-of-n: gain = d(α − βd); RL: gain = d(α − β log d) (Gao et al. 2022, "
        "arXiv:2210.10760). The peak is where the law says that more optimisation costs true reward.",
        "",
        "| by | law | α | β | R² | peak of d |",
        "|---|---|---|---|---|---|",
    ]
    for name, fit in fits(experiment, outcomes):
        peak = f"{fit.peak:.2f}" if fit.peak is not None else "none"
        lines.append(f"| {name} | {fit.law} | {fit.alpha:.3f} | {fit.beta:.3f} | {fit.r_squared:.3f} | {peak} |")
    return [*lines, ""]


def _short(value: float) -> str:
    return f"{value:g}"
