"""compare.json: everything that a comparison found, for programs."""

from __future__ import annotations

from typing import Any

from truing.compare.standing import Standing
from truing.compare.verdict import Verdict
from truing.evaluate.intervals import DRAWS, LEVEL

FILE = "compare.json"


def record(verdict: Verdict) -> dict[str, Any]:
    """The content of compare.json."""
    contest = verdict.contest
    return {
        "command": contest.request.command(),
        **contest.arguments,
        "budget": None if contest.budget is None else {"unit": contest.budget.unit, "amount": contest.budget.amount},
        "data": list(contest.data),
        "trained_on": {entry.name: list(entry.trained_on) for entry in contest.entries},
        "held_out_prompts": len({number for numbers in contest.groups.values() for number in numbers}),
        "seeds": list(contest.seeds),
        "intervals": {"level": LEVEL, "draws": DRAWS, "method": "percentile bootstrap of prompts and seeds, paired"},
        "figures": {standing.figure.key: _standing(standing) for standing in verdict.standings},
        "not_measured": verdict.missing(),
        "costs": {name: costs.as_json() for name, costs in verdict.costs.items()},
    }


def _standing(standing: Standing) -> dict[str, Any]:
    return {
        "unit": standing.figure.unit,
        "better": standing.figure.better,
        "clusters": standing.clusters,
        "results": {
            name: {"value": one.value, **dict(zip(("low", "high"), one.interval(), strict=True))}
            for name, one in standing.estimates.items()
        },
        "best": standing.best,
        "not_separated_from_best": list(standing.tied),
        "separated_from_best": list(standing.behind),
        "difference_level": standing.level,
        "differences_from_best": {
            name: {"value": one.value, "low": one.low, "high": one.high, "separated": one.separated}
            for name, one in standing.differences.items()
        },
    }
