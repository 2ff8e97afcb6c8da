"""How often the guards of healthy runs complain, and whether they see what is wrong with sick ones.

OMP_NUM_THREADS=1 python benchmarks/guards.py --work FOLDER

Runs of the tour's world, one after the other, each in a process of its own: half an hour on one core. Called again with
the same folder, it goes on where it stopped, and `--only` a part of it. Nothing here ends a run (every guard warns),
so that each monitor is seen; what would have ended it is counted as such.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from learning_runs import apart
from truing.build.chain import run
from truing.core.errors import GuardError
from truing.lab import truth
from truing.recipe.load import recipe_from
from truing.report.runs import read_run
from truing.training.guard_settings import GuardSettings
from truing.training.guards import Guards
from truing.training.progress import Silent
from truing.training.signs import Facts
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_file

HERE = Path(__file__).parent
SEEDS, FAULT_SEEDS = 8, 5
LOOKED_AT = range(4)  # seeds that rules were mended on
STEPS = 120
LORA = {"use": "lora", "rank": 8}
TRUTH = f"{Path(truth.__file__)}:true_rewards"
MONITORS = tuple(name for name in GuardSettings.model_fields if name != "limits")
BEFORE = ("duplicates", "template")
WARN = {name: "warn" for name in MONITORS if name != "non_finite"}
Stage = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What the guards of a run saw: monitor → the step at which it spoke."""

    arm: str
    seed: int
    events: dict[str, int]
    stopped: str  # the error that ended it
    steps: int


@dataclass(frozen=True)
class Arm:
    name: str
    stage: Callable[[World], Stage]
    seeds: int = SEEDS


class World:
    """Data of one seed, and where the runs that others start from lie."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        self.folder = work / f"seed-{seed}"
        self.base = work / "base" / "final"

    def file(self, name: str, **knobs: Any) -> Path:
        folder = self.folder / "data" / "-".join(f"{key}-{value}" for key, value in knobs.items())
        if not (folder / f"{name}.jsonl").is_file():
            write_file(folder, name, WorldSettings(seed=self.seed, **knobs))
        return folder / f"{name}.jsonl"

    def changed(self, name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], called: str) -> Path:
        rows = [json.loads(line) for line in self.file(name).read_text(encoding="utf-8").splitlines()]
        target = self.folder / "data" / f"{called}.jsonl"
        target.write_text("".join(json.dumps(row) + "\n" for row in change(rows)), encoding="utf-8")
        return target

    def final(self, arm: str) -> Path:
        return self.folder / arm / "final"


def stage(world: World, objective: Mapping[str, Any], data: Path, lr: float, **changes: Any) -> Stage:
    """A stage as the tour has it, over the seed's SFT model, with a judge where answers can be written."""
    judged = {"judge": TRUTH, "judge_path": str(world.file("prompts")), "judge_max_new_tokens": 16}
    evaluation = {"every": STEPS // 6, **({} if objective["use"] == "reward" else {**judged, "judge_completions": 128})}
    return {
        "model": str(world.final("sft")),
        "adapter": LORA,
        "template": "plain",
        "objective": dict(objective),
        "data": {"path": str(data), "max_length": 32},
        "optim": {"lr": lr, "max_steps": STEPS},
        "batch": {"examples": 32},
        "evaluation": evaluation,
        "samples": {"count": 0},
        "checkpoint": {"every": 100_000},
        "precision": {"matmul": "highest"},
        "guards": WARN,
        "seed": world.seed,
        **changes,
    }


def sft(world: World) -> Stage:
    plain = {"model": str(world.base), "adapter": "none"}
    data = {"path": str(world.file("demonstrations")), "max_length": 32, "holdout": 0.1}
    return stage(world, {"use": "sft"}, Path(), 3e-3, **plain) | {"data": data}


def dpo(world: World, data: Path | None = None, lr: float = 5e-4, **changes: Any) -> Stage:
    made = stage(world, {"use": "dpo", "beta": 0.5}, data or world.file("pairs"), lr, **changes)
    made["data"]["eval_path"] = str(world.file("test_pairs"))
    return made


def kto(world: World, lr: float = 5e-4) -> Stage:
    made = stage(world, {"use": "kto", "beta": 0.5}, world.file("judgements"), lr)
    made["data"]["holdout"] = 0.1
    return made


def reward(world: World, data: Path | None = None) -> Stage:
    made = stage(world, {"use": "reward"}, data or world.file("pairs"), 2e-3, batch={"examples": 1})
    made["data"]["eval_path"] = str(world.file("test_pairs"))
    return made


def ppo(world: World, kl_coef: float = 0.3, paid_by: str = "reward", lr: float = 1e-3, use: str = "ppo") -> Stage:
    rollout = {"rewards": [str(world.final(paid_by))], "max_new_tokens": 16}
    rollout |= {"value_lr": 5e-3} if use == "ppo" else {}
    examples = 32 if use == "ppo" else 8
    made = stage(world, {"use": use, "kl_coef": kl_coef}, world.file("training_prompts"), lr, rollout=rollout)
    made["data"]["eval_path"] = str(world.file("prompts"))
    return made | {"batch": {"examples": examples}}


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def repeated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A third of the rows twice: a quarter of all then repeat another."""
    return rows + rows[: len(rows) // 3]


def mislabelled(world: World) -> Stage:
    """Held-out rows are of the same file, so that nothing but the judge can tell."""
    made = stage(world, {"use": "dpo", "beta": 0.5}, world.changed("pairs", swapped, "swapped"), 5e-4)
    made["data"]["holdout"] = 0.1
    return made


def unjudged(made: Stage) -> Stage:
    return made | {"evaluation": {"every": STEPS // 6}}


def wrong_reference(world: World) -> Stage:
    """Other log-probs where those of the start are looked for: lower ones, as of a model that has learned less."""
    cache = world.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    filled = {"precompute_ref_log_probs": True, "cache": str(cache)}
    once = dpo(world, reference=filled, optim={"lr": 1e-6, "max_steps": 2})
    apart(lambda: str(run(recipe_from(once), world.folder / "filling", Silent())))
    shutil.rmtree(world.folder / "filling")
    for file in cache.iterdir():
        kept = load_file(file)
        noise = np.random.default_rng(world.seed).normal(0, 0.3, size=kept["logprobs"].shape)
        save_file({**kept, "logprobs": (kept["logprobs"] - np.abs(noise)).astype(np.float32)}, file)
    return dpo(world, reference=filled)


def duplicated(world: World) -> Stage:
    made = sft(world)
    made["data"]["path"] = str(world.changed("demonstrations", repeated, "repeated"))
    return made | {"optim": {"lr": 3e-3, "max_steps": 20}}


def mismatched(world: World) -> Stage:
    return dpo(world, template="alpaca", optim={"lr": 5e-4, "max_steps": 20})


HEALTHY = (
    Arm("sft", sft),
    Arm("reward", reward),
    Arm("dpo", dpo),
    Arm("kto", kto),
    Arm("ppo", ppo),
    Arm("grpo", lambda world: ppo(world, use="grpo")),
)
HELPERS = (Arm("flawed", lambda world: reward(world, world.file("pairs", length_bias=0.1)), FAULT_SEEDS),)
SICK = (
    Arm("dpo, rate x100", lambda world: dpo(world, lr=5e-2), FAULT_SEEDS),
    Arm("kto, rate x100", lambda world: kto(world, lr=5e-2), FAULT_SEEDS),
    Arm("ppo, rate x100", lambda world: ppo(world, lr=1e-1), FAULT_SEEDS),
    Arm("dpo, swapped labels", mislabelled, FAULT_SEEDS),
    Arm("dpo, swapped labels, no judge", lambda world: unjudged(mislabelled(world)), FAULT_SEEDS),
    Arm("ppo, no KL term, a reward that pays for length", lambda world: ppo(world, 0.0, "flawed", 3e-3), FAULT_SEEDS),
    Arm("dpo, wrong reference", wrong_reference, FAULT_SEEDS),
    Arm("dpo, another template", mismatched, FAULT_SEEDS),
    Arm("sft, duplicated data", duplicated, FAULT_SEEDS),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of arms; nothing is written to results/ then")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    prepare(options.work)
    found = []
    for seed in range(options.seeds):
        for arm in (*HEALTHY, *HELPERS, *SICK):
            wanted = options.only is None or arm.name in options.only
            if seed < arm.seeds and wanted:
                found.append(outcome(World(options.work, seed), arm))
                print(seed, arm.name, found[-1].stopped or "", found[-1].events, flush=True)
    if options.only is None:
        write(found)


def prepare(work: Path) -> None:
    """The base model, trained on anybody's text."""
    if (work / "base" / "final").is_dir():
        return
    write_base_model(work / "blank")
    corpus = write_file(work / "data", "corpus", WorldSettings())
    recipe = {
        "model": str(work / "blank"),
        "adapter": "none",
        "data": {"path": str(corpus), "max_length": 32, "loss_on": "all"},
        "objective": {"use": "sft"},
        "optim": {"lr": 1e-2, "max_steps": 300},
        "batch": {"examples": 64},
        "samples": {"count": 0},
    }
    apart(lambda: str(run(recipe_from(recipe), work / "base", Silent())))


def outcome(world: World, arm: Arm) -> Found:
    """Run an arm with a seed, if that is not done yet, and judge its rows as they were judged while it trained."""
    folder = world.folder / "".join(c if c.isalnum() else "-" for c in arm.name)
    ended = folder / "ended.txt"
    if not ended.is_file():
        recipe = recipe_from(arm.stage(world))
        shutil.rmtree(folder, ignore_errors=True)

        def work() -> str:
            try:
                run(recipe, folder, Silent())
            except GuardError as stopped:
                return type(stopped).__name__
            return ""

        stopped = apart(work)
        folder.mkdir(exist_ok=True)
        ended.write_text(stopped, encoding="utf-8")
    recorded = rows_of(folder / "events.jsonl")
    events = {event["monitor"]: event["step"] for event in recorded if event["monitor"] in BEFORE}
    rows = rows_of(folder / "metrics.jsonl")
    guards = Guards(GuardSettings(**WARN), read_run(folder).facts if rows else Facts())
    for row in rows:
        events |= {event.monitor: event.step for event in guards.after(row)}
    return Found(arm.name, world.seed, events, ended.read_text(encoding="utf-8"), len(rows))


def rows_of(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def write(found: Sequence[Found]) -> None:
    """Write the tables and everything that was seen."""
    healthy = [one for one in found if one.arm in {arm.name for arm in HEALTHY}]
    sick = [one for one in found if one.arm in {arm.name for arm in SICK}]
    halves = [[one for one in healthy if (one.seed in LOOKED_AT) == looked] for looked in (True, False)]
    spoke = [name for name in MONITORS if any(name in one.events for one in found)]
    loud = [sum(bool(one.events) for one in half) for half in halves]
    acted = [sum(bool(acting(one)) for one in half) for half in halves]
    silent = ", ".join(f"`{name}`" for name in MONITORS if name not in spoke)
    lines = [
        "# Guards",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores; torch {torch.__version__}. "
        "`OMP_NUM_THREADS=1 python benchmarks/guards.py --work FOLDER`. Runs of "
        f"{STEPS} steps in the tour's world; default limits, a judge (the true reward) on all but the reward models. "
        "Limits are those that were written down before the first run, but for `kto_rewards` and "
        f"`kto_reference_point`: they spoke in healthy runs of KTO with seeds 0 to {max(LOOKED_AT)}, and were mended "
        "after looking at these. The other seeds were not looked at. Intervals are Wilson's, 95 %.",
        "",
        "## Healthy runs",
        "",
        "| | seeds looked at | other seeds |",
        "|---|---|---|",
        f"| runs | {len(halves[0])} | {len(halves[1])} |",
        f"| a guard spoke | {share(loud[0], len(halves[0]))} | {share(loud[1], len(halves[1]))} |",
        f"| a guard would have acted | {share(acted[0], len(halves[0]))} | {share(acted[1], len(halves[1]))} |",
        "",
        f"{', '.join(arm.name for arm in HEALTHY)}, each with {SEEDS} seeds of data, start and sampling.",
        "",
        "| monitor | seeds looked at | other seeds | sick runs in which it spoke |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {count(halves[0], name)} | {count(halves[1], name)} | {count(sick, name)} of {len(sick)} |"
            for name in spoke
        ),
        "",
        f"Never spoke: {silent}.",
        "",
        "## Sick runs",
        "",
        "| fault | detected | first at step (median) | by, in how many runs first | acted on at step (median) |",
        "|---|---|---|---|---|",
        *(row_of(arm.name, [one for one in sick if one.arm == arm.name]) for arm in SICK),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    results = HERE / "results"
    (results / "guards.md").write_text(text, encoding="utf-8")
    values = {"steps": STEPS, "limits": GuardSettings().limits.model_dump(), "runs": [asdict(one) for one in found]}
    (results / "guards.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def acting(one: Found) -> dict[str, int]:
    """What would have lowered the rate or ended the run, with the default actions."""
    defaults = GuardSettings()
    return {name: step for name, step in one.events.items() if defaults.action(name) not in ("off", "warn")}


def count(runs: Sequence[Found], monitor: str) -> int:
    return sum(monitor in one.events for one in runs)


def row_of(arm: str, runs: Sequence[Found]) -> str:
    seen = [one for one in runs if one.events or one.stopped]
    steps = [0 if one.stopped else min(one.events.values()) for one in seen]
    first: dict[str, int] = {}
    for one in seen:
        soonest = min(one.events.values(), default=0)
        names = [one.stopped] if one.stopped else [n for n, step in one.events.items() if step == soonest]
        for name in names:
            first[name] = first.get(name, 0) + 1
    by = ", ".join(f"`{name}` {times}" for name, times in sorted(first.items(), key=lambda item: -item[1]))
    acts = [min(acting(one).values()) for one in runs if acting(one)] + [0 for one in runs if one.stopped]
    ended = f"{median(acts):g} ({len(acts)} of {len(runs)})" if acts else "–"
    step = f"{median(steps):g}" if steps else "–"
    return f"| {arm} | {share(len(seen), len(runs))} | {step} | {by or '–'} | {ended} |"


def share(part: int, whole: int) -> str:
    """A share with Wilson's interval."""
    if not whole:
        return "–"
    z, p = 1.96, part / whole
    centre, half = p + z * z / (2 * whole), z * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole * whole))
    low, high = ((centre + sign * half) / (1 + z * z / whole) for sign in (-1, 1))
    return f"{part} of {whole} ({max(0.0, low):.0%} to {min(1.0, high):.0%})"


if __name__ == "__main__":
    main()
