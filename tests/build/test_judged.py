"""KTO and BCO end to end on a tiny model: judged answers to a result, whatever the micro-batch, also resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from truing.build import density
from truing.build.chain import run
from truing.core.errors import DataError
from truing.recipe.load import recipe_from
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and a file of judged answers, two of three desirable."""
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=10, pairs=60))
    write_base_model(folder / "model")
    pairs = [json.loads(line) for line in files.pairs.read_text(encoding="utf-8").splitlines()]
    rows = []
    for index, pair in enumerate(pairs):
        good = index % 3 > 0
        rows.append({"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good})
    judged = folder / "judged.jsonl"
    judged.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "model", judged


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def values(world: tuple[Path, Path], use: str, adapter: Any = LORA, **top: Any) -> dict[str, Any]:
    return {
        "model": str(world[0]),
        "adapter": adapter,
        "objective": {"use": use},
        "data": {"path": str(world[1]), "max_length": 48, "holdout": 0.2},
        "optim": {"lr": 1e-3, "max_steps": 6},
        "samples": {"count": 0},
        "batch": {"examples": 6, "micro_tokens": 128},
        "checkpoint": {"every": 2},
        "precision": {"matmul": "highest"},
        **top,
    }


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
@pytest.mark.parametrize("use", ["kto", "bco"])
def test_judged_answers_train_alike_in_any_micro_batch(
    world: tuple[Path, Path], tmp_path: Path, use: str, adapter: Any
) -> None:
    """Three passes of four steps each; after the first, the policy has met what it is asked about."""
    for name, size in (("one", 1), ("all", 4096)):
        batch, optim = {"examples": 12, "micro_tokens": size}, {"lr": 3e-3, "max_steps": 12}
        run(recipe_from(values(world, use, adapter, batch=batch, optim=optim)), tmp_path / name, Silent())
    one, together = metrics(tmp_path / "one"), metrics(tmp_path / "all")
    for a, b in zip(one, together, strict=True):
        for key in ("loss", "rewards/chosen", "rewards/margins", "kl" if use == "kto" else "delta"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    resolved = (tmp_path / "all" / "recipe.yaml").read_text(encoding="utf-8")
    if use == "kto":
        assert one[0]["kl"] == pytest.approx(0.0, abs=1e-5)
        assert "undesirable_weight: 1." in resolved, "two thirds are desirable, so the others count more"
    else:
        assert one[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert one[-1]["delta"] != 0.0
    assert all(row["rewards/margins"] > 0 for row in one[4:])
    assert "eval_loss" in one[-1]


@pytest.mark.parametrize("use", ["kto", "bco"])
def test_a_resumed_run_ends_with_the_same_bits(
    world: tuple[Path, Path], tmp_path: Path, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_cut_changes_nothing(values(world, use), tmp_path, monkeypatch, objective=use, step=3, stage=".")


def test_one_class_alone_is_refused_before_training(world: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in world[1].read_text(encoding="utf-8").splitlines()]
    good = tmp_path / "good.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows if row["label"]), encoding="utf-8")
    recipe = recipe_from(values(world, "kto", data={"path": str(good), "max_length": 48}))
    with pytest.raises(DataError, match="labelled desirable"):
        run(recipe, tmp_path / "run", Silent())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_small_holdout_keeps_two_prompts(world: tuple[Path, Path], tmp_path: Path) -> None:
    """With one prompt alone there would be no other prompt's answer to compare with."""
    data = {"path": str(world[1]), "max_length": 48, "holdout": 0.001}
    run(recipe_from(values(world, "kto", data=data, optim={"lr": 1e-3, "max_steps": 2})), tmp_path / "run", Silent())
    assert "eval_kl" in metrics(tmp_path / "run")[-1]


@pytest.fixture(scope="module")
def shifted(world: tuple[Path, Path]) -> tuple[Path, Path]:
    """The model, and answers of which mostly those to the shorter prompts are undesirable."""
    rows = [json.loads(line) for line in world[1].read_text(encoding="utf-8").splitlines()]
    middle = sorted(len(row["prompt"]) for row in rows)[len(rows) // 2]
    for index, row in enumerate(rows):
        row["label"] = (len(row["prompt"]) >= middle) ^ (index % 5 == 0)
    file = world[1].parent / "shifted.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return world[0], file


def matched(shifted: tuple[Path, Path], adapter: Any = LORA, **top: Any) -> dict[str, Any]:
    return {**values(shifted, "bco", adapter, **top), "objective": {"use": "bco", "matching": True}}


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_matching_weighs_the_loss_and_says_what_prompts_alone_tell(
    shifted: tuple[Path, Path], tmp_path: Path, adapter: Any
) -> None:
    heard = Listening()
    run(recipe_from(matched(shifted, adapter)), tmp_path / "run", heard)
    found = [text for text in heard.said if "prompts alone tell" in text]
    assert len(found) == 1
    assert float(found[0].split("AUC ")[1].split()[0]) > 0.6, "the length of a prompt shows in its hidden states"
    rows = metrics(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(math.log(2) * rows[0]["weight"], abs=1e-6)
    assert any(abs(row["weight"] - 1) > 0.02 for row in rows)
    assert "eval_weight" in rows[-1], "held-out rows have weights too"
    run(recipe_from(matched(shifted, adapter, batch={"examples": 6, "micro_tokens": 1})), tmp_path / "one", Silent())
    for a, b in zip(rows, metrics(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_a_cut_changes_nothing_under_matching(
    shifted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_cut_changes_nothing(matched(shifted), tmp_path, monkeypatch, objective="bco", step=3, stage=".")


def test_a_resumed_run_reads_the_ratios_it_began_with(
    shifted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With full weights the start is gone by then; nothing may be fitted to the policy as it stands."""
    calls = []
    real = density.cross_fit
    monkeypatch.setattr(density, "cross_fit", lambda prompts: calls.append(prompts) or real(prompts))
    recipe = matched(shifted, "none")
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="bco", step=3, stage=".")
    assert len(calls) == 2, "once for the straight run, once for the cut one"


def test_kto_starts_at_one_half_in_half_precision_too(world: tuple[Path, Path], tmp_path: Path) -> None:
    weights = {"use": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}
    recipe = values(world, "kto", objective=weights, precision="bf16", optim={"lr": 1e-3, "max_steps": 1})
    run(recipe_from(recipe), tmp_path / "run", Silent())
    (row,) = metrics(tmp_path / "run")
    assert row["loss"] == pytest.approx(0.5, abs=1e-7)
    assert row["kl"] == 0.0
