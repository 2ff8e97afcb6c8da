"""Policies learn what a reward asks for: a tiny model of the world, a program as the reward, held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from truing.build.chain import run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent
from truing.world.base_model import MAX_NEW_TOKENS, write_base_model
from truing.world.records import WorldSettings, write_world
from truing.world.reviews import REVIEWS

REWARD = f"""
THANKS = {REVIEWS.thanks!r}

def thanks(prompts, completions, **columns):
    return [float(completion.endswith(THANKS)) for completion in completions]
"""
SAMPLES = 4
"""Of each of the 54 held-out prompts."""
MARGIN = 0.3
"""Two shares among so many answers differ by a deviation of less than 0.05 by chance."""

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"batch": {"examples": 8}, "rollout": {"group_size": 8}, "optim": {"lr": 1e-2, "max_steps": 12}},
    "ppo": {"batch": {"examples": 64}, "rollout": {"value_lr": 1e-2}, "optim": {"lr": 4e-3, "max_steps": 32}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has seen some demonstrations, and of what it goes on with."""
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=10, demonstrations=2000, pairs=10))
    write_base_model(folder / "blank")
    recipe = {
        "model": str(folder / "blank"),
        "adapter": "none",
        "objective": {"use": "sft"},
        "data": {"path": str(files.demonstrations), "max_length": 64},
        "optim": {"lr": 1e-2, "max_steps": 80},
        "batch": {"examples": 32},
        "samples": {"count": 0},
    }
    run(recipe_from(recipe), folder / "base", Silent())
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    asked = "".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in REVIEWS.training)
    (folder / "asked.jsonl").write_text(asked, encoding="utf-8")
    return folder


@pytest.mark.parametrize("use", METHODS)
def test_held_out_prompts_get_answers_of_higher_reward(base: Path, tmp_path: Path, use: str) -> None:
    own = METHODS[use]
    recipe = {
        "model": str(base / "base" / "final"),
        "adapter": {"use": "lora", "rank": 8},
        "objective": {"use": use, "kl_coef": 0.02},
        "data": {"path": str(base / "asked.jsonl"), "max_length": 64},
        "samples": {
            "prompts": [prompt.text for prompt in REVIEWS.held_out] * SAMPLES,
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": 1.0,
        },
        "precision": {"matmul": "highest"},
        **own,
        "rollout": {**own["rollout"], "max_new_tokens": MAX_NEW_TOKENS, "rewards": [f"{base / 'reward.py'}:thanks"]},
    }
    run(recipe_from(recipe), tmp_path / "run", Silent())
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    last = max(row["step"] for row in rows)
    before, after = (
        fmean(row["completion"].endswith(REVIEWS.thanks) for row in rows if row["step"] == step) for step in (0, last)
    )
    assert after > before + MARGIN
