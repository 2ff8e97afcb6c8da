"""Short runs of every method on a tiny model: several micro-batches a step, a checkpoint after each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 2, "dropout": 0.1}
REWARD = """\
def words(prompts, completions, **columns):
    return [len(set(text.split())) / 10 for text in completions]
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all runs share: a model, data, a reward."""

    model: Path
    files: WorldFiles
    reward: Path

    @classmethod
    def write(cls, folder: Path) -> Ground:
        """Make it below a folder."""
        files = write_world(folder, WorldSettings(corpus=20, demonstrations=24, pairs=24))
        write_base_model(folder / "model")
        reward = folder / "rewards.py"
        reward.write_text(REWARD, encoding="utf-8")
        return cls(folder / "model", files, reward)

    def stage(self, use: str, steps: int = 3) -> dict[str, Any]:
        """A stage of a method."""
        objective: dict[str, Any] = {"use": use}
        if use in ("ppo", "grpo"):
            objective |= {"kl_target": 0.1, "kl_horizon": 50}
            rollout = {"rewards": [f"{self.reward}:words"], "max_new_tokens": 6, "mini_batches": 2, "epochs": 1}
            data = {"path": str(self.files.prompts), "max_length": 24, "limit": 8}
            return {"objective": objective, "data": data, "rollout": rollout, "optim": {"lr": 3e-3, "max_steps": steps}}
        files = self.files
        path = {"sft": files.demonstrations, "kto": files.judgements, "bco": files.judgements}.get(use, files.pairs)
        data = {"path": str(path), "max_length": 48, "limit": 10, "holdout": 0.2}
        return {"objective": objective, "data": data, "optim": {"lr": 1e-3, "max_steps": steps}}

    def recipe(self, *stages: dict[str, Any], lora: bool = True, **more: Any) -> dict[str, Any]:
        """A run of these stages."""
        return {
            "model": str(self.model),
            "template": "plain",
            "adapter": LORA if lora else "none",
            "samples": {"count": 1, "every": 2, "max_new_tokens": 2},
            "batch": {"examples": 4, "micro_tokens": 64},
            "precision": {"matmul": "highest"},
            "checkpoint": {"every": 1},
            "stages": list(stages),
            **more,
        }
