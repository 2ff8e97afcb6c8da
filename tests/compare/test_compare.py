"""`truing compare` end to end on the tiny world: one honest table, an interruption, hostile text, wrong arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from truing.cli.main import cli
from truing.compare import contest
from truing.core.errors import TruingError
from truing.evaluate.processes import Task
from truing.report.write import write_report
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

HOSTILE = "<script>alert(1)</script> \x1b[31m"
REWARDS = """
def words(prompts, completions, **columns):
    return [float(len(set(text.split()))) for text in completions]
"""
FEW = ("--seeds", 2, "--budget", "steps=3", "--evaluate-on", 12, "--max-new-tokens", 8, "--lr", "sft=1e-2,dpo=1e-3")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=60))
    write_base_model(folder / "model")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    rows = [json.loads(line) for line in files.pairs.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "prompt": f"{row['prompt']} {HOSTILE}"} for row in rows]
    (folder / "hostile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "model", files


def ask(world: tuple[Path, WorldFiles], output: Path, methods: str, *options: object, data: object = None) -> Result:
    words: Sequence[object] = ["compare", "--model", world[0], "--methods", methods, "--output", output, *options]
    files = ["--data", data or world[1].pairs]
    return CliRunner().invoke(cli, [str(word) for word in (*words, *files)], standalone_mode=False)


def kept(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def compared(
    world: tuple[Path, WorldFiles], tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[Path, WorldFiles], Path, str, list[str]]:
    """Two methods and two seeds, cut off once before its exams; what the second call had left to do."""
    output = tmp_path_factory.mktemp("compared") / "out"
    options = (*FEW, "--reward", f"{world[0].parent / 'rewards.py'}:words", "--general", world[1].corpus)
    real, hostile = contest.run_tasks, world[0].parent / "hostile.jsonl"
    done: list[str] = []

    def dies(tasks: Sequence[Task], *rest: Any, **named: Any) -> Any:
        if any(task.name.startswith("measure") for task in tasks):
            raise KeyboardInterrupt
        return real(tasks, *rest, **named)

    def counts(tasks: Sequence[Task], *rest: Any, **named: Any) -> Any:
        done.extend(task.name for task in tasks)
        return real(tasks, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "run_tasks", dies)
        assert ask(world, output, "sft,dpo", *options, data=hostile).exception is not None
        patch.setattr(contest, "run_tasks", counts)
        result = ask(world, output, "sft,dpo", *options, data=hostile)
    assert result.exception is None, result.output
    return world, output, result.output, done


Compared = tuple[tuple[Path, WorldFiles], Path, str, list[str]]


def test_a_second_call_does_only_what_is_left(compared: Compared) -> None:
    _, _, _, done = compared
    assert not [name for name in done if not name.startswith("measure")]
    assert len(done) == 1 + 2 * 2


def test_every_figure_of_every_result_is_in_the_file_with_its_interval(compared: Compared) -> None:
    found = kept(compared[1])
    figures = found["figures"]
    for name in ("loss", "win_rate", "win_rate_at_equal_length", "kl", "forgetting", "length", "accuracy_per_token"):
        assert set(figures[name]["results"]) == {"start", "sft", "dpo"}
        assert all(one["low"] <= one["value"] <= one["high"] for one in figures[name]["results"].values())
    assert figures["win_rate"]["results"]["start"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert figures["kl"]["results"]["start"]["value"] == 0.0
    assert figures["kl"]["results"]["sft"]["value"] > 0.0
    assert figures["loss"]["best"] == "sft", "three steps at 1e-2 are felt by a model of random weights"
    assert [run["steps"] for run in found["costs"]["dpo"]["runs"]] == [3, 3]
    assert found["data_sha256"]
    assert found["model_sha256"]


def test_what_each_was_trained_on_is_said_and_is_the_same_split(compared: Compared) -> None:
    _, output, text, _ = compared
    rows = [
        [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (output / "data/train/comparisons.jsonl", output / "data/held-out/comparisons.jsonl")
    ]
    assert not set(rows[0]) & set(rows[1])
    assert f"dpo was trained on {len(rows[0])} comparisons" in text
    assert f"sft was trained on {len(rows[0])} chosen answers" in text


def test_the_table_fits_into_a_hundred_columns_of_plain_text(compared: Compared) -> None:
    lines = compared[2].splitlines()
    assert (
        max(len(line.rstrip()) for line in lines[lines.index(next(x for x in lines if "On held-out rows" in x)) : -1])
        <= 100
    )
    assert "\x1b" not in compared[2]
    assert "…" not in compared[2]


def test_the_page_escapes_what_strangers_wrote(compared: Compared) -> None:
    page = (compared[1] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<svg") > 8


def test_its_runs_are_run_directories(compared: Compared, tmp_path: Path) -> None:
    folders = [compared[1] / "runs" / name for name in ("sft-0", "dpo-1")]
    assert write_report(folders, tmp_path / "page.html").is_file()


def test_other_arguments_in_the_same_folder_are_refused(compared: Compared) -> None:
    world, output, _, _ = compared
    result = ask(world, output, "sft,dpo", *FEW)
    assert isinstance(result.exception, TruingError)
    assert "holds a comparison with another" in str(result.exception)
    assert result.exception.exit_code == 2


def test_thumbs_without_a_judge_and_a_budget_of_time(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in world[1].pairs.read_text(encoding="utf-8").splitlines()]
    thumbs = tmp_path / "thumbs.jsonl"
    judged = [{"prompt": r["prompt"], "completion": r["chosen" if n % 2 else "rejected"]} for n, r in enumerate(rows)]
    thumbs.write_text("".join(json.dumps({**row, "label": n % 2}) + "\n" for n, row in enumerate(judged)))
    options = ("--budget", "time=1s", "--evaluate-on", 8, "--max-new-tokens", 6, "--adapter", "none")
    result = ask(world, tmp_path / "out", "kto", *options, data=thumbs)
    assert result.exception is None, result.output
    found = kept(tmp_path / "out")
    assert found["costs"]["kto"]["time_off"] is not None
    assert {"win_rate", "accuracy", "forgetting"}.isdisjoint(found["figures"])
    assert "win-rate: not measured; nothing judges completions; give --reward" in result.output


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        ("ppo", (), "ppo learns from completions of its own, which something has to score: give --reward"),
        ("dop", (), "there is no objective 'dop'; did you mean"),
        ("dpo", ("--lr", "kto=1e-5"), "--lr names kto, which is not compared"),
        ("dpo", ("--budget", "forever"), "--budget forever: expected a unit and an amount"),
        ("dpo", ("--reward", "nowhere.py:fn"), "there is no file 'nowhere.py'"),
        ("dpo", ("--general", "nowhere.txt"), "nowhere.txt"),
        ("dpo", ("--max-length", "500"), "--max-length 500 is more than the 64 positions"),
        ("dpo", ("--max-new-tokens", "64"), "--max-new-tokens 64 leaves no room for a prompt in the 64 positions"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    world: tuple[Path, WorldFiles], tmp_path: Path, methods: str, options: tuple[str, ...], said: str
) -> None:
    result = ask(world, tmp_path / "out", methods, *options)
    assert isinstance(result.exception, TruingError), result.output
    assert said in str(result.exception)
    assert result.exception.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_method_that_no_file_fits_is_named(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    result = ask(world, tmp_path / "out", "sft,dpo", data=world[1].demonstrations)
    assert isinstance(result.exception, TruingError)
    assert "dpo: none of the files fits it" in str(result.exception)


def test_recipes_are_compared_by_their_last_result(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    common = f"""
model: {world[0]}
adapter: {{use: lora, rank: 4}}
precision: {{matmul: highest}}
optim: {{max_steps: 2}}
data: {{path: {world[1].pairs}, max_length: 48}}
"""
    (tmp_path / "judge.yaml").write_text(common + "objective: {use: reward}\n", encoding="utf-8")
    stages = "stages:\n  - objective: {use: sft}\n  - objective: {use: dpo}\n"
    (tmp_path / "chain.yaml").write_text(common + stages, encoding="utf-8")
    words = ["compare", tmp_path / "judge.yaml", tmp_path / "chain.yaml", "--output", tmp_path / "out"]
    words += ["--evaluate-on", 8, "--max-new-tokens", 6]
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    assert result.exception is None, result.output
    found = kept(tmp_path / "out")
    assert set(found["figures"]["accuracy"]["results"]) == {"start", "judge", "chain"}
    assert set(found["figures"]["loss"]["results"]) == {"start", "chain"}, "a reward model predicts no text"
    assert found["trained_on"]["chain"][1].endswith("comparisons")
    assert [run["steps"] for run in found["costs"]["chain"]["runs"]] == [4]
