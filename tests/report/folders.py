"""Run directories made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STAGE = {
    "name": "dpo",
    "model": "models/base",
    "adapter": {"use": "lora", "rank": 8},
    "objective": {"use": "dpo", "beta": 0.1},
    "data": {"path": "data/pairs.json"},
    "optim": {"lr": 1e-5},
    "seed": 0,
}
DATA = {
    "files": [{"name": "data/pairs.json", "format": "chosen_rejected", "rows": 40}],
    "rows": {"read": 40, "used": 38},
    "trees": {"train": 30, "held_out": 8},
    "dropped": {"answers are the same": {"data/pairs.json": [3, 17]}},
    "tokens": {"prompt": {"p50": 5, "p95": 9, "max": 12}, "completion": {"p50": 20, "p95": 30, "max": 41}},
    "notes": ["raw text is used as it stands"],
}
SAMPLES = [
    {"step": step, "prompt": "Hello", "completion": f"answer {step}", "tokens": 2, "ended": True} for step in (0, 10)
]


def dpo_rows(steps: int = 10) -> list[dict[str, Any]]:
    """Figures of a healthy DPO run, each of another value."""
    return [
        {
            "step": step,
            "loss": 0.7 - 0.0101 * step,
            "learning_rate": 1e-5,
            "grad_norm": 1.0 + 0.003 * step,
            "tokens": 1000 + step,
            "seconds": 0.5,
            "memory_bytes": 400_000_000 + step,
            "skipped_steps": 0,
            "rewards/chosen": 0.011 * step,
            "rewards/rejected": -0.013 * step,
            "rewards/margins": 0.024 * step,
            "rewards/accuracies": 0.5 + 0.0123 * step,
            "logps/chosen": -30.0,
            "logps/rejected": -31.0,
        }
        for step in range(1, steps + 1)
    ]


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    stage: Mapping[str, Any] = STAGE,
    samples: Sequence[Mapping[str, Any]] = SAMPLES,
    planned: int | None = None,
    finished: bool = True,
) -> Path:
    """Write a run directory, weights aside."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"output": str(folder), "stages": [dict(stage)]}), encoding="utf-8"
    )
    for name, lines in (("metrics", rows), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    steps = planned if planned is not None else len(rows)
    plan = {"steps": steps, "trained_parameters": 1234, "bytes": {"weights": 2_000_000, "optimizer": 3_000_000}}
    for name, value in (
        ("plan", plan),
        ("data", DATA),
        ("environment", {"device": "cpu", "versions": {"truing": "0.1.0"}}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    if finished:
        (folder / "final").mkdir()
    return folder
