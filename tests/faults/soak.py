"""Kills chains of two stages at random points, resumes them, and compares each with its uninterrupted twin.

    python -m tests.faults.soak --kills 2000 --output benchmarks/results/soak.md

Methods, LoRA or full weights, and the recipe's seed are drawn anew for every chain, from `--seed`.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.lives import live, result_of
from tests.faults.recipes import Ground

FIRST, SECOND = ("sft", "reward"), ("sft", "dpo", "kto", "bco", "ppo", "grpo")
FARTHEST = 80
"""Points that a life may pass at most; a chain has about 350."""
LONGEST = 400
"""Kills of one chain at most."""


@dataclass(slots=True)
class Figures:
    """What has happened so far."""

    chains: int = 0
    mismatches: list[str] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return self.phases.total()

    def report(self, command: str) -> str:
        """The page of figures."""
        machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        totals = {
            "chains of two stages": self.chains,
            "kills, each followed by a resume": self.kills,
            "chains that did not end in the bits of their uninterrupted twin": len(self.mismatches),
        }
        parts = [
            "# Random kills",
            f"`{command}`",
            f"{machine}, one thread a life; it took {self.seconds:.0f} s.",
            _table("", totals.items()),
            _table("killed while it", self.phases.most_common()),
            _table("killed at", self.kinds.most_common()),
            "\n".join(f"- {mismatch}" for mismatch in self.mismatches),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _table(about: str, rows: Iterable[tuple[str, int]]) -> str:
    return "\n".join([f"| {about} | |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows)])


def phase_of(place: str) -> str:
    """What a run was doing at the place where it was killed."""
    kind, _, path = place.partition(" ")
    if not path:
        return {"backward": "differentiated", "update": "updated weights", "sample": "sampled"}.get(kind, "scored")
    for part, phase in (
        ("checkpoints", "saved a checkpoint"),
        ("final", "wrote the result"),
        ("base", "wrote the result"),
        ("parity", "wrote the result"),
        ("reference", "kept log-probs"),
        ("density", "kept log-probs"),
        (".jsonl", "appended or cut figures"),
    ):
        if part in path:
            return phase
    return "began"


def soak(kills: int, seed: int, folder: Path, figures: Figures) -> None:
    """Kill and resume chain after chain until there were so many kills."""
    draw = random.Random(seed)
    ground = Ground.write(folder / "ground")
    while figures.kills < kills:
        number = figures.chains
        methods = [draw.choice(FIRST), draw.choice(SECOND)]
        if methods[0] == methods[1]:
            methods[1] = "dpo"
        lora = draw.random() < 0.7
        recipe = ground.recipe(*(ground.stage(method) for method in methods), lora=lora, seed=draw.randrange(1000))
        straight, cut = folder / f"{number}-straight", folder / f"{number}-cut"
        told = f"chain {number}: {'-'.join(methods)}, {'LoRA' if lora else 'full weights'}"
        untouched = live(recipe, straight)
        if untouched.kind != "done":
            raise SystemExit(f"{told}: the uninterrupted run failed: {untouched}")
        for _ in range(LONGEST):
            life = live(recipe, cut, draw.randint(1, FARTHEST))
            if life.kind != "killed":
                break
            figures.phases[phase_of(life.told)] += 1
            figures.kinds[life.told.split()[0]] += 1
        if life.kind != "done":
            figures.mismatches.append(f"{told}: {life}")
        elif result_of(cut) != result_of(straight):
            figures.mismatches.append(f"{told}: other weights or figures")
        figures.chains += 1
        print(f"{told}; {figures.kills} kills, {len(figures.mismatches)} mismatches", flush=True)


def main() -> None:
    """Soak, write the page, and end with 1 where a chain was not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    figures, started = Figures(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="truing-soak-") as folder:
        soak(asked.kills, asked.seed, Path(folder), figures)
    figures.seconds = time.monotonic() - started
    page = figures.report(f"python -m tests.faults.soak --kills {asked.kills} --seed {asked.seed}")
    if asked.output:
        asked.output.write_text(page, encoding="utf-8")
    print(page)
    sys.exit(1 if figures.mismatches else 0)


if __name__ == "__main__":
    main()
