"""Guards of whole runs on a tiny model: off means untouched; what lower, stop and restore leave, also resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from truing.build.chain import resume, run
from truing.cli.main import cli
from truing.core.errors import DataError, InputError, NonFinite, RecipeError, Unhealthy
from truing.recipe.load import dump, load_recipe, recipe_from
from truing.report.write import report_page
from truing.training.optimizer import Optimizer
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
JUDGES = """
import json, os
def lengths(prompts, completions, **columns):
    return [len(text.split()) / 10 for text in completions]
def falls(prompts, completions, **columns):
    # It is tried once; then it likes the answers of the start, those after it more, and the others less and less.
    file = __file__ + ".count"
    done = int(open(file).read()) if os.path.exists(file) else 0
    open(file, "w").write(str(done + 1))
    return [[0.0, 0.5, 0.9, 0.4, 0.3, 0.2][min(done, 5)] + 0.001 * (i % 2) for i in range(len(completions))]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=60))
    write_base_model(folder / "model")
    return folder / "model", files


class Heard(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def dpo(world: tuple[Path, WorldFiles], adapter: Any = LORA, **top: Any) -> dict[str, Any]:
    model, files = world
    return {
        "model": str(model),
        "adapter": adapter,
        "samples": {"count": 0},
        "batch": {"examples": 8, "micro_tokens": 128},
        "checkpoint": {"every": 4},
        "precision": {"matmul": "highest"},
        "objective": {"use": "dpo"},
        "data": {"path": str(files.pairs), "max_length": 48, "holdout": 0.2},
        "optim": {"lr": 1e-3, "max_steps": 10, "schedule": "constant", "warmup": 0},
        "evaluation": {"every": 2},
        **top,
    }


def judged_by(folder: Path, name: str, every: int = 2) -> dict[str, Any]:
    """The judge of a file of its own, so that it counts its calls from the start."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judges.py").write_text(JUDGES, encoding="utf-8")
    judge = f"{folder / 'judges.py'}:{name}"
    return {"every": every, "judge": judge, "judge_completions": 8, "judge_max_new_tokens": 6}


def events(folder: Path) -> list[tuple[int, str, str]]:
    file = folder / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [(row["step"], row["monitor"], row["action"]) for row in map(json.loads, lines)]


def weights(final: Path) -> dict[str, torch.Tensor]:
    return load_file(next(final.glob("*model.safetensors")))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


WIDE = {"limits": {"margin": 1e-6}}
"""A limit that every run breaks, at the fifth row, so that what follows can be seen."""


@pytest.mark.parametrize("adapter", [{**LORA, "dropout": 0.1}, "none"], ids=["dropout", "full"])
def test_guards_and_judge_that_do_not_act_change_no_bit(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    off = run(recipe_from(dpo(world, adapter, guards="off")), tmp_path / "off", Silent())
    on = run(recipe_from(dpo(world, adapter, guards=WIDE)), tmp_path / "on", Silent())
    restoring = {"judge_falls": "warn", "overfit": "restore"}
    judged = dpo(world, adapter, evaluation=judged_by(tmp_path, "lengths"), guards=restoring)
    with_judge = run(recipe_from(judged), tmp_path / "judged", Silent())
    assert same(weights(off), weights(on))
    assert same(weights(off), weights(with_judge))
    assert events(tmp_path / "off") == []
    assert (5, "margin", "warn") in events(tmp_path / "on")


def test_a_first_complaint_is_said_once_and_shown_in_the_report(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    heard = Heard()
    run(recipe_from(dpo(world, guards=WIDE)), tmp_path / "run", heard)
    assert sum("The margin of rewards rose above" in text for text in heard.warned) == 1
    assert "The margin of rewards rose above" in report_page([tmp_path / "run"])


def test_lowering_halves_the_rate_from_there_on_also_after_a_resume(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dpo(world, guards={**WIDE, "margin": "lower"})
    straight = assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="dpo", step=9, stage=".")
    assert events(straight) == events(tmp_path / "cut") == [(5, "margin", "lower")]
    for folder in ("straight", "cut"):
        rates = [row["learning_rate"] for row in metrics(tmp_path / folder)]
        assert rates == [1e-3] * 5 + [5e-4] * 5
    assert "guards.margin halved the learning rate" in report_page([straight])


def test_stopping_ends_with_exit_code_3_and_a_state_that_goes_on(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    untouched = run(recipe_from(dpo(world)), tmp_path / "untouched", Silent())
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe_from(dpo(world, guards={**WIDE, "margin": "stop"}))), encoding="utf-8")
    found = CliRunner().invoke(cli, ["train", str(file), "--output", str(tmp_path / "run")])
    assert isinstance(found.exception, Unhealthy)
    assert found.exception.exit_code == 3
    assert "guards.margin is stop; the state of step 5 is saved" in str(found.exception)
    assert (tmp_path / "run" / "checkpoints" / "step-000005").is_dir()
    assert not (tmp_path / "run" / "final").exists()
    assert (tmp_path / "run" / "report.html").is_file()
    resumed = resume(tmp_path / "run", Silent())
    assert events(tmp_path / "run") == [(5, "margin", "stop")]
    assert same(weights(resumed), weights(untouched))


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_restoring_ends_with_the_bits_of_the_best_state(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    """The judge likes the state of step 2 best; the evaluations of steps 4 and 6 are below it."""
    heard = Heard()
    recipe = dpo(world, adapter, evaluation=judged_by(tmp_path / "a", "falls"))
    final = run(recipe_from(recipe), tmp_path / "run", heard)
    short = dpo(world, adapter, optim={"lr": 1e-3, "max_steps": 2, "schedule": "constant", "warmup": 0})
    best = run(recipe_from(short), tmp_path / "short", Silent())
    assert same(weights(final), weights(best))
    rows = metrics(tmp_path / "run")
    assert (rows[0]["start/judge/score"], rows[1]["judge/score"]) == pytest.approx((0.5005, 0.9005))
    assert rows[-1]["step"] == 6
    assert rows[-1]["restored_step"] == 2
    assert (6, "judge_falls", "restore") in events(tmp_path / "run")
    assert any("the result is the best state, that of step 2" in text for text in heard.warned)
    card = (final / "README.md").read_text(encoding="utf-8")
    assert "After step 2, whose state this is" in card
    assert "| `judge/score` | 0.9005 |" in card
    assert "the result is the best state, that of step 2" in report_page([tmp_path / "run"])


def test_the_start_is_restored_where_nothing_was_better(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    evaluation = judged_by(tmp_path, "falls")
    (tmp_path / "judges.py.count").write_text("1", encoding="utf-8")  # so that the start is what it likes best
    final = run(recipe_from(dpo(world, evaluation=evaluation)), tmp_path / "run", Silent())
    assert metrics(tmp_path / "run")[-1]["restored_step"] == 0
    assert all(not tensor.any() for name, tensor in weights(final).items() if "lora_B" in name)
    assert "| `judge/score` | 0.9005 |" in (final / "README.md").read_text(encoding="utf-8")


def test_a_run_cut_between_restoring_and_its_result_only_writes_it(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(dpo(world, evaluation=judged_by(tmp_path / "a", "falls")))
    straight = run(recipe, tmp_path / "straight", Silent())
    recipe = recipe_from(dpo(world, evaluation=judged_by(tmp_path / "b", "falls")))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("truing.build.stage.write_final", dies)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "cut", Silent())
    rows = metrics(tmp_path / "cut")
    assert same(weights(resume(tmp_path / "cut", Silent())), weights(straight))
    assert metrics(tmp_path / "cut") == rows, "no step was made"


def test_a_held_out_loss_tells_the_best_state_where_there_is_no_judge(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    recipe = dpo(world, guards={**WIDE, "margin": "restore"})
    final = run(recipe_from(recipe), tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run")
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert rows[-1]["restored_step"] == best
    short = dpo(world, optim={**recipe["optim"], "max_steps": best})
    assert same(weights(final), weights(run(recipe_from(short), tmp_path / "short", Silent())))


def test_restoring_needs_something_that_tells_the_best(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    data = {"path": str(world[1].pairs), "max_length": 48}
    with pytest.raises(RecipeError, match=r"guards.margin: restore needs a measure"):
        run(recipe_from(dpo(world, data=data, guards={"margin": "restore"})), tmp_path / "run", Silent())
    late = dpo(world, evaluation={"every": 8}, guards={**WIDE, "margin": "restore"})
    with pytest.raises(Unhealthy, match="no state was measured yet"):
        run(recipe_from(late), tmp_path / "late", Silent())


def test_gradients_that_stay_infinite_stop_the_run_and_save_nothing(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Optimizer.clip, []

    def clip(self: Optimizer) -> float:
        calls.append(real(self))
        return calls[-1] if len(calls) <= 5 else float("inf")

    monkeypatch.setattr(Optimizer, "clip", clip)
    with pytest.raises(NonFinite, match="3 steps in a row"):
        run(recipe_from(dpo(world)), tmp_path / "run", Silent())
    assert len(metrics(tmp_path / "run")) == 8
    assert not (tmp_path / "run" / "checkpoints" / "step-000008").exists()
    monkeypatch.setattr(Optimizer, "clip", real)
    assert resume(tmp_path / "run", Silent()).is_dir()
    assert len(metrics(tmp_path / "run")) == 10


def test_a_judge_needs_prompts_that_nothing_is_trained_on(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    evaluation = judged_by(tmp_path, "lengths")
    bare = {"path": str(world[1].pairs), "max_length": 48}
    with pytest.raises(RecipeError, match=r"evaluation\.judge needs prompts"):
        run(recipe_from(dpo(world, data=bare, evaluation=evaluation)), tmp_path / "run", Silent())
    trained = {**evaluation, "judge_path": str(world[1].training_prompts)}
    with pytest.raises(DataError, match="a prompt that is trained on"):
        run(recipe_from(dpo(world, data=bare, evaluation=trained)), tmp_path / "run", Silent())
    absent = {**evaluation, "judge": "./absent.py:fn"}
    with pytest.raises(InputError, match=r"evaluation\.judge: there is no file"):
        run(recipe_from(dpo(world, evaluation=absent)), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_reward_stage_judges_later_ones_by_its_name(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    top = dpo(world, optim={"lr": 1e-3, "max_steps": 2})
    judge = {"judge": "reward", "judge_path": str(world[1].prompts), "judge_completions": 6, "judge_max_new_tokens": 4}
    objective, data = top.pop("objective"), top.pop("data")
    later = {"objective": objective, "data": data, "evaluation": judge}
    stages = [{"objective": {"use": "reward"}, "data": data}, later]
    run(recipe_from({**top, "stages": stages}), tmp_path / "run", Silent())
    (first, last) = metrics(tmp_path / "run" / "2-dpo")
    assert first["start/judge/half_width"] > 0
    assert 0 < last["judge/length"] <= 4


def test_paths_of_the_judge_are_found_beside_the_recipe(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(JUDGES, encoding="utf-8")
    (tmp_path / "asked.jsonl").write_text("{}", encoding="utf-8")
    values = dpo(world, evaluation={"judge": "./judges.py:lengths", "judge_path": "asked.jsonl"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    found = load_recipe(tmp_path / "recipe.yaml").stages[0].evaluation
    assert found.judge == f"{tmp_path / 'judges.py'}:lengths"
    assert found.judge_path == str(tmp_path / "asked.jsonl")


@pytest.mark.parametrize(("share", "expected"), [(4, []), (3, [(0, "duplicates", "warn")])])
def test_a_fifth_of_repeated_rows_is_said_before_training(
    world: tuple[Path, WorldFiles], tmp_path: Path, share: int, expected: list[tuple[int, str, str]]
) -> None:
    """Of 30 rows, 6 repeated ones are 6 of 36, and 10 are a quarter of 40."""
    lines = world[1].pairs.read_text(encoding="utf-8").splitlines()[:30]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(lines + lines[: 30 // share if share == 3 else 6]), encoding="utf-8")
    run(recipe_from(dpo(world, data={"path": str(file), "max_length": 48})), tmp_path / "run", Silent())
    assert [each for each in events(tmp_path / "run") if each[0] == 0] == expected


def test_another_template_than_the_starts_own_is_said_and_can_stop_the_run(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    optim = {"lr": 1e-3, "max_steps": 2}
    first = run(recipe_from(dpo(world, template="plain", optim=optim)), tmp_path / "first", Silent())
    start = {**LORA, "start": str(first)}
    run(recipe_from(dpo(world, start, template="plain", optim=optim)), tmp_path / "same", Silent())
    run(recipe_from(dpo(world, start, optim=optim)), tmp_path / "raw", Silent())
    assert events(tmp_path / "same") == events(tmp_path / "raw") == []
    run(recipe_from(dpo(world, start, template="alpaca", optim=optim)), tmp_path / "other", Silent())
    assert events(tmp_path / "other") == [(0, "template", "warn")]
    assert "carries a chat template of its own" in report_page([tmp_path / "other"])
    strict = dpo(world, start, template="alpaca", optim=optim, guards={"template": "stop"})
    with pytest.raises(Unhealthy, match="nothing was trained"):
        run(recipe_from(strict), tmp_path / "strict", Silent())
    assert not (tmp_path / "strict" / "metrics.jsonl").exists()


def test_a_kl_guard_acts_in_a_rollout_run_also_after_a_cut(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_by(tmp_path, "lengths")
    rollout = {"rewards": [f"{tmp_path / 'judges.py'}:lengths"], "max_new_tokens": 6, "group_size": 4}
    recipe = dpo(
        world,
        objective={"use": "grpo", "kl_coef": 0.0},
        data={"path": str(world[1].prompts), "max_length": 24, "limit": 12},
        rollout=rollout,
        optim={"lr": 1e-2, "max_steps": 12, "schedule": "constant", "warmup": 0},
        guards={"kl_twice": "lower", "limits": {"kl": 0.01}},
    )
    straight = assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="grpo", step=11, stage=".")
    rates = [row["learning_rate"] for row in metrics(straight)]
    lowered = next(step for step, monitor, action in events(straight) if (monitor, action) == ("kl_twice", "lower"))
    assert rates == [1e-2] * lowered + [5e-3] * (12 - lowered)
