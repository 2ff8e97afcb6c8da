"""The first run: a small world, a tiny base model of it, then SFT and DPO with LoRA, through the public path."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from truing.build.chain import run
from truing.core.errors import RunError
from truing.recipe.load import load_recipe
from truing.tour.judge import Verdict, answers, judge
from truing.training.progress import Reporter
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

MARK = "tour.json"
"""Written first: a folder with it is a tour of ours, and may be begun anew."""

BASE_STEPS, SFT_STEPS, DPO_STEPS = 500, 120, 120


@dataclass(frozen=True, slots=True)
class Stop:
    """One model of the tour."""

    name: str
    folder: Path
    verdict: Verdict


def run_tour(output: Path, reporter: Reporter) -> list[Stop]:
    """Run the tour into `output`; a former tour there is begun anew."""
    started = time.perf_counter()
    _clear(output)
    reporter.say("A small world of short reviews. Its true reward is a program, so we can see whether training helped.")
    files = write_world(output / "world", WorldSettings())
    write_base_model(output / "world" / "blank")
    (output / "recipes").mkdir(parents=True, exist_ok=True)

    reporter.say("\n1. A base model: 0.1 million parameters learn to write reviews, good and bad ones alike.")
    base = _train(output, "base", base_recipe(output, files), reporter)
    reporter.say("\n2. The recommended chain: SFT on demonstrations, then DPO on comparisons, with LoRA.")
    chain = _train(output, "chain", chain_recipe(base, files), reporter)

    folders = {"base": base, "sft": chain.parent / "1-sft" / "final", "dpo": chain.parent / "2-dpo" / "final"}
    stops = [Stop(name, folder, judge(folder, files.prompts)) for name, folder in folders.items()]
    _write_result(output, stops)
    _tell(output, files, stops, time.perf_counter() - started, reporter)
    return stops


def base_recipe(output: Path, files: WorldFiles) -> dict[str, Any]:
    """All weights, all tokens of running text: what pre-training does."""
    return {
        "model": str(output / "world" / "blank"),
        "adapter": "none",
        "objective": {"use": "sft"},
        "data": {"path": str(files.corpus), "max_length": 64, "loss_on": "all"},
        "optim": {"lr": 8e-3, "max_steps": BASE_STEPS},
        "batch": {"examples": 64},
        "samples": {"count": 0},
        "checkpoint": {"every": BASE_STEPS},
    }


def chain_recipe(base: Path, files: WorldFiles) -> dict[str, Any]:
    """The recommended chain; the same keys work on any model."""
    return {
        "model": str(base),
        "adapter": {"use": "lora", "rank": 8},
        "samples": {"count": 3, "max_new_tokens": 24},
        "checkpoint": {"every": 60},
        "stages": [
            {
                "objective": {"use": "sft"},
                "data": {"path": str(files.demonstrations), "max_length": 64},
                "optim": {"lr": 3e-3, "max_steps": SFT_STEPS},
                "batch": {"examples": 32},
            },
            {
                "objective": {"use": "dpo", "beta": 0.5},
                "data": {"path": str(files.pairs), "max_length": 64, "holdout": 0.02},
                "optim": {"lr": 4e-4, "max_steps": DPO_STEPS},
                "batch": {"examples": 32},
            },
        ],
    }


def _train(output: Path, name: str, recipe: dict[str, Any], reporter: Reporter) -> Path:
    """Write the recipe where the user can find it, and run it as `truing train` does; return the result's folder."""
    file = output / "recipes" / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return run(load_recipe(file), output / name, reporter)


def _clear(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).is_file():
            raise RunError(f"{output} is not empty and holds no tour; give another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_text("{}\n", encoding="utf-8")


def _write_result(output: Path, stops: list[Stop]) -> None:
    result = {s.name: {"true_reward": s.verdict.mean, "half_width_95": s.verdict.half_width} for s in stops}
    (output / MARK).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _tell(output: Path, files: WorldFiles, stops: list[Stop], seconds: float, reporter: Reporter) -> None:
    reporter.say("\nThe same prompts, answered before and after")
    prompts = [json.loads(line)["prompt"] for line in files.prompts.read_text(encoding="utf-8").splitlines()[:4]]
    told = [answers(stop.folder, prompts) for stop in stops]
    for index, prompt in enumerate(prompts):
        reporter.say(f"  {prompt}")
        for stop, rows in zip(stops, told, strict=True):
            text, reward = rows[index]
            reporter.say(f"    {stop.name:<5} {reward:4.2f}  {text}")
    reporter.say(
        "\nTrue reward of answers sampled at temperature 0.7 to prompts never trained on "
        "(0 to 1, with its 95 % interval)"
    )
    for stop in stops:
        bar = "█" * round(30 * stop.verdict.mean)
        reporter.say(f"  {stop.name:<5} {stop.verdict.mean:.3f} ± {stop.verdict.half_width:.3f}  {bar}")
    reporter.say(
        f"\n{seconds:.0f} s in all. The recipes are in {output / 'recipes'}; they work on your model and data too:\n"
        f"  truing train {output / 'recipes' / 'chain.yaml'} --set model=YOUR/MODEL --output runs/mine\n"
        f'  truing chat {output / "chain"} --prompt "{prompts[0]}" --compare-to {stops[0].folder}'
    )
