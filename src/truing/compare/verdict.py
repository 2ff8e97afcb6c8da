"""A comparison in words: what is the best, what is not separated from it, and what could not be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from truing.compare.contest import Contest
from truing.compare.costs import Costs, costs_of
from truing.compare.folder import START
from truing.compare.standing import (
    ACCURACY,
    FORGETTING,
    LOSS,
    WINS,
    Field,
    Standing,
    standings,
)
from truing.core.text import harmless

MARK = "*"
"""Stands behind the best and behind what is not separated from it."""

FEW = 30
"""Clusters below which the percentile interval of a mean falls clearly short of what it says."""
MANY = 0.2
"""Share of completions cut short from which on it is said."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """A comparison with all that follows from its measurements."""

    contest: Contest
    standings: tuple[Standing, ...]
    costs: Mapping[str, Costs]

    @classmethod
    def of(cls, contest: Contest) -> Verdict:
        """Draw the intervals; an entry of which a guard stopped a run has costs alone."""
        names = [entry.name for entry in contest.entries]
        costs = {name: costs_of(contest, name) for name in names}
        whole = [name for name in names if costs[name].stopped is None]
        results = {name: contest.measured(name) for name in (START, *whole)}
        return cls(contest, standings(Field(results, START, contest.groups)), costs)

    @property
    def names(self) -> list[str]:
        """The start, and every entry that was measured."""
        return [START, *(name for name, costs in self.costs.items() if costs.stopped is None)]

    def standing(self, key: str) -> Standing | None:
        """How the results stand in a figure, where it was measured."""
        return next((one for one in self.standings if one.figure.key == key), None)

    def sentences(self) -> list[str]:
        """What may be said of each figure."""
        return [_sentence(one) for one in self.standings if one.best is not None]

    def missing(self) -> list[str]:
        """What was not measured, and how it could be."""
        exam = self.contest.exam
        reasons = {
            LOSS.key: "there are no held-out answers; give a file with demonstrations, comparisons or judgements",
            ACCURACY.key: "there are no held-out comparisons; give a file with chosen and rejected answers",
            WINS.key: "nothing judges completions; give --reward with a reward model's run or a function FILE.py:FN"
            if exam.prompts is not None
            else "no file has prompts to answer",
            FORGETTING.key: "give --general FILE with text that nothing is trained on",
        }
        titles = {one.key: one.title for one in (LOSS, ACCURACY, WINS, FORGETTING)}
        lines = [f"{titles[key]}: not measured; {why}" for key, why in reasons.items() if self.standing(key) is None]
        stopped = [(name, found.stopped) for name, found in self.costs.items() if found.stopped is not None]
        cut = [name for name, found in self.costs.items() if any(run.process.resumed for run in found.runs)]
        lines += [
            f"{name}: interrupted and continued, so peak memory and time in all are of the last part" for name in cut
        ]
        return lines + [f"{name}: a guard stopped it, so it was not measured: {harmless(why)}" for name, why in stopped]

    def how_to_read(self) -> list[str]:
        """What the intervals are."""
        prompts = len({number for numbers in self.contest.groups.values() for number in numbers})
        seeds = len(self.contest.seeds)
        over = f"{prompts:,} held-out prompts" + (f" and {seeds} seeds" if seeds > 1 else "")
        lines = [
            f"In brackets 95 % intervals over {over}. {MARK} marks the best of a figure and what its paired difference "
            "does not separate from it: among those nothing is ranked.",
        ]
        fewest = min((one.clusters for one in self.standings), default=0)
        if fewest < FEW:
            lines.append(
                f"Some figures rest on {fewest} prompts: below {FEW} such intervals are too narrow, so what is called "
                "separated there may not be. Hold out more, or give more data."
            )
        pleasing = [entry.name for entry in self.contest.entries if entry.by_rollouts]
        if pleasing and self.contest.request.reward is not None and self.standing(WINS.key) is not None:
            lines.append(
                f"The judge is also what {_listed(pleasing)} was trained to please: its win-rate says how well it does "
                "that, not that its completions are better."
            )
        share = self._cut()
        if share > MANY:
            lines.append(
                f"{share:.0%} of the completions were cut at {self.contest.request.max_new_tokens} tokens, so nobody "
                "knows how long and how good they would have become; raise --max-new-tokens."
            )
        if seeds == 1:
            lines.append(
                "One seed says nothing of how another would have ended; --seeds 3 puts that into the intervals."
            )
        return lines

    def _cut(self) -> float:
        """Share of completions that did not end by themselves, of the result where it is largest."""
        written = [one.written for name in self.names for one in self.contest.measured(name) if one.written]
        return max((sum(not one.ended for one in own) / len(own) for own in written), default=0.0)


def _sentence(standing: Standing) -> str:
    end = "lowest" if standing.figure.better == "lower" else "highest"
    alone = standing.estimates[standing.best or ""].value
    begin = f"{standing.figure.title}: {standing.best} is {end} ({standing.figure.shown(alone)})"
    tied, behind = standing.tied, standing.behind
    if not tied:
        return f"{begin}, separated from all others"
    apart = f"; {_listed(behind)} {'is' if len(behind) == 1 else 'are'} separated from it" if behind else ""
    return f"{begin}, but not separated from {_listed(tied)}{apart}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def off(costs: Costs) -> str:
    """How far the time was off what was foreseen, such as `+8 %`."""
    return "–" if costs.time_off is None else f"{100 * costs.time_off:+.0f} %".replace("-", "−")


def cell(standing: Standing, name: str) -> str:
    """A result's figure with its interval and its mark; a dash where it has none."""
    estimate = standing.estimates.get(name)
    if estimate is None:
        return "–"
    value, low, high = map(standing.figure.number, (estimate.value, *estimate.interval()))
    marked = standing.best is not None and (name == standing.best or name in standing.tied)
    between = " – " if "−" in low else "–"
    return (value if low == high else f"{value} ({low}{between}{high})") + (MARK if marked else "")
