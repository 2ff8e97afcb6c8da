"""Writes what our own studies say to the advisor's rules, from their results, and the figure of the rules.

The first is src/truing/advisor/evidence.yaml, the second docs/deciding.svg.

python docs/advice.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from truing.advisor.flow import flow_figure
from truing.advisor.rules import rules
from truing.lab.summary import Interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "results"
EVIDENCE = ROOT / "src" / "truing" / "advisor" / "evidence.yaml"
FIGURE = ROOT / "docs" / "deciding.svg"
HEADER = "# Written by docs/advice.py from studies/results; run `make docs`.\n"
BEST_OF = 16

Values = dict[int, float]
"""Seed → expected true reward."""


@dataclass(frozen=True)
class Entry:
    """A paired difference of two arms of a study, and the sentence that it stands in."""

    study: str
    first: str
    second: str
    sentence: str
    """With `{difference}` for the difference and its interval."""


ENTRIES: Mapping[str, Entry] = {
    "noise": Entry("noise", "ipo, 0.2", "dpo, 0.2", "with every fifth label turned round IPO ends {difference} DPO"),
    "noise_all": Entry(
        "noise", "dpo, 0.4", "sft", "with two labels in five turned round DPO ends {difference} where it began"
    ),
    "missing": Entry(
        "missing",
        "kto, 0.9 missing",
        "dpo, 0.9 missing",
        "with nine of ten good answers missing KTO ends {difference} DPO on the pairs that are left",
    ),
    "few_pairs": Entry("data_needed", "dpo, 30", "sft", "on 30 comparisons DPO ends {difference} where it began"),
    "data_needed": Entry(
        "data_needed", "dpo, 1000", "dpo, 100", "with 1,000 comparisons DPO ends {difference} where it ends with 100"
    ),
    "judgements_needed": Entry(
        "data_needed", "kto, 1000", "kto, 100", "with 1,000 judged answers KTO ends {difference} where it ends with 100"
    ),
    "demonstrations": Entry(
        "data_needed",
        "more sft, 300",
        "more sft, 30",
        "with 300 demonstrations SFT ends {difference} where it ends with 30",
    ),
    "ppo_dpo": Entry("frontier", "ppo, learned reward", "dpo β 0.1", "PPO with a learned reward ends {difference} DPO"),
    "best_of_n": Entry("frontier", "reward", "dpo β 0.1", "the best of 16 is {difference} DPO"),
    "hacking": Entry(
        "overoptimisation",
        "ppo, 6000 pairs",
        "sft",
        "PPO without a KL term ends {difference} where it began, while its reward model is pleased more and more",
    ),
    "rank": Entry(
        "rank",
        "rank 16",
        "all weights",
        "with 65,000 weights LoRA of rank 16 ends {difference} training all of them",
    ),
}


def main() -> int:
    """Write both, or say which is old."""
    told_all = {name: told(entry) for name, entry in ENTRIES.items()}
    evidence = HEADER + yaml.safe_dump(told_all, sort_keys=False, allow_unicode=True, width=110)
    old = False
    for target, text in ((EVIDENCE, evidence), (FIGURE, flow_figure(rules()))):
        if "--check" not in sys.argv:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{target.relative_to(ROOT)} is old; run `make docs`\n")
            old = True
    return int(old)


def told(entry: Entry) -> dict[str, object]:
    """The difference over the seeds that both arms have, with its 95 % interval."""
    found = json.loads((RESULTS / f"{entry.study}.json").read_text(encoding="utf-8"))
    first, second = (rewards(found[name]) for name in (entry.first, entry.second))
    seeds = sorted(first.keys() & second.keys())
    apart = Interval.of([first[seed] - second[seed] for seed in seeds])
    side = "above" if apart.mean > 0 else "below"
    chance = "" if apart.excludes_zero else ", which may be chance,"
    size = f"{abs(apart.mean):.3f} ± {apart.half:.3f}{chance} {side}"
    return {
        "study": f"studies/{entry.study}.yaml",
        "sentence": entry.sentence.format(difference=size),
        "difference": round(apart.mean, 4),
        "half_width_95": round(apart.half, 4),
        "seeds": len(seeds),
    }


def rewards(runs: Sequence[Mapping[str, object]]) -> Values:
    """Of a policy its own, of a reward model that of the best of `BEST_OF` samples."""
    return {int(str(run["seed"])): reward(run) for run in runs}


def reward(run: Mapping[str, object]) -> float:
    """Expected true reward of a run."""
    own, best = run["reward"], run["best_of"]
    assert isinstance(own, list)
    assert isinstance(best, list)
    return fmean(own) if own else next(float(point[1]) for point in best if point[0] == BEST_OF)


if __name__ == "__main__":
    sys.exit(main())
