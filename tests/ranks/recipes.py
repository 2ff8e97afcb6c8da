"""Recipes of every kind over a tiny model, and how far two runs of one are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.build.runs import metrics
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

REWARD = "def distinct(prompts, completions, **columns):\n    return [float(len(set(c)) % 7) for c in completions]\n"
FILES = {"sft": "demonstrations", "reward": "pairs", "dpo": "pairs", "aot": "pairs", "tr_dpo": "pairs"}
FILES |= {"kto": "judgements", "bco": "judgements", "ppo": "prompts", "grpo": "prompts", "online_dpo": "prompts"}
TIMED = ("seconds", "memory_bytes")


def write_ground(folder: Path) -> Path:
    """A model and data of all kinds."""
    write_world(folder, WorldSettings(corpus=30, demonstrations=40, pairs=40))
    write_base_model(folder / "model")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    return folder


def recipe(
    ground: Path, use: str, *, lora: bool, shard: int | str = 1, examples: int = 7, **more: Any
) -> dict[str, Any]:
    """A few steps of a method. Seven rows a step, in micro-batches of a few, come out even on no number of ranks."""
    every = {
        "model": str(ground / "model"),
        "adapter": {"use": "lora", "rank": 4} if lora else "none",
        "objective": {"use": use},
        "data": {"path": str(ground / f"{FILES[use]}.jsonl"), "max_length": 48, "holdout": 0.2},
        "optim": {"lr": 1e-3, "max_steps": 4},
        "batch": {"examples": examples, "micro_tokens": 64},
        "samples": {"count": 1, "max_new_tokens": 4},
        "checkpoint": {"every": 2},
        "precision": {"matmul": "highest", "dtype": "fp32"},
        "parallel": {"shard": shard},
    }
    if FILES[use] == "prompts":
        every["rollout"] = {
            "rewards": [f"{ground / 'reward.py'}:distinct"],
            "max_new_tokens": 6,
            "group_size": 4,
            "mini_batches": 2 if use == "ppo" else 1,
        }
    return {**every, **more}


def furthest(one: Path, other: Path) -> tuple[float, str]:
    """The largest difference between the figures of two runs, relative to those above 1, and which it is."""
    found = [(0.0, "")]
    rows, others = metrics(one), metrics(other)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, second in zip(rows, others, strict=True):
        for name, value in row.items():
            if name not in TIMED and value is not None:
                apart = abs(value - second[name]) / max(1.0, abs(value))
                found.append((apart, f"{name} of step {row['step']}: {value} and {second[name]}"))
    return max(found)


def weights_apart(one: Path, other: Path) -> float:
    """The largest difference between two results' weights."""
    name = next(file.name for file in (one / "final").glob("*model.safetensors"))
    first, second = load_file(one / "final" / name), load_file(other / "final" / name)
    assert first.keys() == second.keys()
    return max(float((first[key].float() - second[key].float()).abs().max()) for key in first)
