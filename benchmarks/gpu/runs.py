"""The runs of the benchmark: each a few processes, which bring back what their steps gave and cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from cost import SHAPES, Rows, Shape, forward, lora_step

HERE = Path(__file__).parent
WARM_UP = 2
"""Steps at the beginning of a run that no median counts."""


class Skipped(Exception):
    """A row that could not be run, and why."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    device: str
    shapes: tuple[str, ...]
    """In the order of their worth."""
    ppo: str
    """The shape that PPO runs on."""
    prompt: int
    completion: int
    pairs: int
    """Rows of a step; a step of SFT has twice as many, which are as many tokens to a rival."""
    steps: int
    micro_tokens: int
    micro_pairs: int
    """Of the rival, which has to be told rows."""
    rollout: tuple[int, int]
    """Rows and new tokens of PPO."""
    head: tuple[int, int, int]
    """Tokens, width and vocabulary of the loss alone."""


FULL = Scale(
    device="cuda",
    shapes=("qwen2.5-0.5b", "llama-7b", "llama-3.2-1b"),
    ppo="llama-7b",
    prompt=1024,
    completion=256,
    pairs=4,
    steps=8,
    micro_tokens=4096,
    micro_pairs=2,
    rollout=(16, 128),
    head=(8192, 4096, 151_936),
)
TINY = Scale(
    device="cpu",
    shapes=("tiny",),
    ppo="tiny",
    prompt=24,
    completion=8,
    pairs=4,
    steps=4,
    micro_tokens=4096,
    micro_pairs=2,
    rollout=(4, 6),
    head=(64, 32, 1_000),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the results."""

    method: str
    shape: str
    engine: str
    step_seconds: list[float]
    losses: list[float]
    read_tokens: int
    """Tokens that a step reads, prompts counted for each of their completions."""
    operations: int
    """Of a step, in this engine's layout."""
    peak_bytes: int
    """Of the allocator on a GPU, else of the process."""
    planned_bytes: int | None = None
    seconds: float = 0.0
    """Of the whole row."""

    @property
    def step(self) -> float:
        return median(self.step_seconds[WARM_UP:] or self.step_seconds)


def run_child(command: Sequence[str], log: Path, seconds: float) -> str:
    """Run a program to its end and return what it printed; a row is skipped if it fails or takes too long."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired as late:
        raise Skipped(f"not done after {late.timeout:.0f} s") from late
    text = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode != 0:
        last = (text.strip().splitlines() or ["no output"])[-1]
        raise Skipped(f"exit code {done.returncode}: {last[:300]}")
    return text


class Bench:
    """Where materials and runs lie, and how programs are called."""

    def __init__(self, scale: Scale, work: Path, truing: Sequence[str], rival_python: str) -> None:
        self.scale, self.work, self.truing, self.rival_python = scale, work, truing, rival_python

    def prepare(self, shape: str, seconds: float) -> str:
        """Make model, adapter and rows of a shape; returns the device's name."""
        scale = self.scale
        count = max(2 * scale.pairs * scale.steps, scale.rollout[0] * 4)
        sizes = [str(size) for size in (count, scale.prompt, scale.completion)]
        command = [sys.executable, str(HERE / "materials.py"), "--shape", shape, "--device", scale.device]
        command += ["--output", str(self.work / shape), "--rows", *sizes]
        return run_child(command, self.work / shape / "materials.log", seconds).strip().splitlines()[-1]

    def has_rival(self, package: str) -> bool:
        """Whether the rival's interpreter can find a package."""
        question = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        return subprocess.run([self.rival_python, "-c", question], capture_output=True).returncode == 0

    def loss_head(self, seconds: float) -> dict[str, dict[str, float]]:
        report = self.work / "head.json"
        command = [sys.executable, str(HERE / "loss_head.py"), "--device", self.scale.device, "--report", str(report)]
        run_child([*command, "--shape", *map(str, self.scale.head)], self.work / "head.log", seconds)
        found: dict[str, dict[str, float]] = json.loads(report.read_text(encoding="utf-8"))
        return found

    def train(self, method: str, shape: str, seconds: float) -> Measured:
        """Truing's DPO or SFT."""
        recipe = self._recipe(method, shape, f"{method}.jsonl")
        recipe["optim"] |= {"max_steps": self.scale.steps, "lr": 1e-4}
        steps, plan, took = self._run_truing(f"truing-{method}", shape, recipe, seconds)
        rows = self._rows(method, shared=True)
        return self._measured(method, shape, "truing", rows, steps, plan, took)

    def rival(self, method: str, shape: str, liger: bool, seconds: float) -> Measured:
        """TRL's, in its own interpreter, with bfloat16 weights and no checkpointing."""
        folder, scale = self.work / shape, self.scale
        name = "trl + liger" if liger else "trl"
        count = self._count(method)
        report = folder / f"{name}-{method}.json"
        data = folder / f"{method}-rival.jsonl"
        lines = (folder / f"{method}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(lines[: count * scale.steps]), encoding="utf-8")
        micro = self._micro_pairs(shape) * (count // scale.pairs)
        command = [self.rival_python, str(HERE.parent / "rivals" / f"trl_{method}.py"), "--report", str(report)]
        command += ["--model", str(folder / "model"), "--adapter", str(folder / "adapter"), "--data", str(data)]
        command += ["--steps", str(scale.steps), "--learning-rate", "1e-4", "--rows", str(count), "--micro", str(micro)]
        command += ["--dtype", "bf16", "--weights", "bfloat16", "--device", scale.device]
        command += ["--limit", str(scale.prompt + scale.completion)]
        command += [*(["--unpacked"] if method == "sft" else []), *(["--liger"] if liger else [])]
        began = time.perf_counter()
        run_child(command, report.with_suffix(".log"), seconds)
        told = json.loads(report.read_text(encoding="utf-8"))
        rows = self._rows(method, shared=False)
        return Measured(
            method,
            shape,
            name,
            told["step_seconds"],
            told["losses"],
            rows.read_tokens,
            lora_step(SHAPES[shape], rows, reference=method == "dpo"),
            told["allocated_bytes"] or told["peak_bytes"],
            seconds=time.perf_counter() - began,
        )

    def ppo(self, shape: str, seconds: float) -> Measured:
        """PPO with policy, reference, reward model and critic over one base; the reward model gets a step first."""
        began = time.perf_counter()
        rows, new = self.scale.rollout
        reward = self._recipe("reward", shape, "dpo.jsonl")
        reward["optim"] |= {"max_steps": 1}
        self._run_truing("truing-reward", shape, reward, seconds)
        recipe = self._recipe("ppo", shape, "ppo.jsonl")
        recipe["batch"]["examples"] = rows
        recipe["optim"] |= {"max_steps": 3}
        recipe["rollout"] = {
            "rewards": [str(self.work / shape / "truing-reward")],
            "group_size": 1,
            "max_new_tokens": new,
            "epochs": 1,
        }
        left = seconds - (time.perf_counter() - began)
        steps, plan, _ = self._run_truing("truing-ppo", shape, recipe, left)
        took = time.perf_counter() - began
        whole = Rows(rows, self.scale.prompt, new, 1, shared=True)
        return self._measured("ppo", shape, "truing", whole, steps, plan, took)

    def _measured(
        self,
        method: str,
        shape: str,
        engine: str,
        rows: Rows,
        steps: list[dict[str, Any]],
        plan: dict[str, Any],
        took: float,
    ) -> Measured:
        terms = {name: size for name, size in plan["bytes"].items() if self.scale.device == "cpu" or name != "process"}
        return Measured(
            method,
            shape,
            engine,
            [step["seconds"] for step in steps],
            [step["loss"] for step in steps],
            rows.read_tokens,
            _operations(method, SHAPES[shape], rows),
            max(step["memory_bytes"] for step in steps),
            sum(terms.values()),
            took,
        )

    def _count(self, method: str) -> int:
        return self.scale.pairs * (2 if method == "sft" else 1)

    def _rows(self, method: str, *, shared: bool) -> Rows:
        completions = 2 if method == "dpo" else 1
        return Rows(self._count(method), self.scale.prompt, self.scale.completion, completions, shared)

    def _micro_pairs(self, shape: str) -> int:
        return 1 if shape == "llama-7b" else self.scale.micro_pairs

    def _recipe(self, method: str, shape: str, data: str) -> dict[str, Any]:
        folder = self.work / shape
        return {
            "model": str(folder / "model"),
            "template": "plain",
            "adapter": {"use": "lora", "rank": 16, "alpha": 32, "start": str(folder / "adapter")},
            "seed": 0,
            "device": self.scale.device,
            "objective": {"use": method},
            "data": {"path": str(folder / data), "max_length": 2 * self.scale.prompt, "shuffle": False},
            "batch": {"examples": self._count(method), "micro_tokens": self.scale.micro_tokens},
            "precision": {"dtype": "bf16", "gradient_checkpointing": False},
            "optim": {"schedule": "constant", "warmup": 0, "weight_decay": 0.0, "max_grad_norm": 1.0},
            "samples": {"count": 0},
        }

    def _run_truing(
        self, name: str, shape: str, recipe: dict[str, Any], seconds: float
    ) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
        """Rows of metrics.jsonl, plan.json, and the seconds of the whole process."""
        folder = self.work / shape / name
        shutil.rmtree(folder, ignore_errors=True)
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        began = time.perf_counter()
        run_child([*self.truing, "train", str(file), "--output", str(folder)], folder.with_suffix(".log"), seconds)
        took = time.perf_counter() - began
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return (
            [json.loads(line) for line in lines],
            json.loads((folder / "plan.json").read_text(encoding="utf-8")),
            took,
        )


def _operations(method: str, shape: Shape, rows: Rows) -> int:
    """Of a step; PPO: the reference's, reward model's and critic's passes over the rollout and one epoch of updates.

    Sampling is left out, which reads weights more than it multiplies: PPO's share of the peak is a lower bound.
    """
    if method == "ppo":
        return 3 * forward(shape, rows) + 2 * lora_step(shape, rows, reference=False)
    return lora_step(shape, rows, reference=method == "dpo")
