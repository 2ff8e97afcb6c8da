from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.advisor.made import write_model, write_rows
from truing.advisor import advise as advise_module
from truing.cli.main import cli
from truing.core.errors import InputError
from truing.core.trees import ExampleKind


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("advised") / "model")


def told(model: Path, folder: Path, kind: ExampleKind, *options: str, count: int = 240) -> dict[str, object]:
    file = write_rows(folder, kind, count)
    words = ["advise", "--data", str(file), "--model", str(model), "--recipe", str(folder / "advice.yaml"), "--json"]
    result = CliRunner().invoke(cli, [*words, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "use"), [("demonstration", "sft"), ("comparison", "dpo"), ("judgement", "kto"), ("prompt", "collect")]
)
def test_each_kind_of_file_gets_its_own_answer(model: Path, tmp_path: Path, kind: ExampleKind, use: str) -> None:
    found = told(model, tmp_path, kind)
    assert found["advice"] == use
    assert (tmp_path / "advice.yaml").is_file() == (use != "collect")


def test_the_case_holds_what_was_read_and_what_was_said(model: Path, tmp_path: Path) -> None:
    found = told(model, tmp_path, "judgement", "--goal", "open", "--tuned", "--gpu", "24GB")
    case = found["case"]
    assert isinstance(case, dict)
    read = {"judgements": 240, "classes": 2, "imbalance": 1.0, "goal": "open", "tuned": True, "full_fits": True}
    assert {name: case[name] for name in read} == read
    assert case["noise"] is None
    plans = found["plan"]
    assert isinstance(plans, list)
    assert [plan["fits"] for plan in plans] == [True]


def test_a_card_that_is_too_small_is_told(model: Path, tmp_path: Path) -> None:
    found = told(model, tmp_path, "comparison", "--gpu", "1MB")
    assert not found["trains"]
    assert found["recipe"] is None


def test_the_terminal_says_why_what_and_what_would_change_it(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path, "comparison", 240)
    target = tmp_path / "mine.yaml"
    words = ["advise", "--data", str(file), "--model", str(model), "--recipe", str(target)]
    text = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    for part in (
        "DPO. ",
        "arXiv:2305.18290",
        "What it needs",
        "Second choice",
        "What would change the answer",
        "Why not",
    ):
        assert part in text
    assert f"truing train {target} --output runs/dpo" in text
    assert target.read_text(encoding="utf-8").startswith("# Written by `truing advise`: DPO.")
    again = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert again.exit_code == 0, "a recipe of its own may be written again"


def test_why_memory_and_time_are_not_foreseen_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*asked: object) -> None:
        raise InputError("no plan for\x1b[2J this")

    monkeypatch.setattr(advise_module, "recipe_answers", refuses)
    assert told(model, tmp_path, "comparison")["no_plan"] == "no plan for\x1b[2J this"
    words = ["advise", "--data", str(tmp_path / "comparisons.jsonl"), "--model", str(model)]
    text = CliRunner().invoke(cli, [*words, "--recipe", str(tmp_path / "other.yaml")], catch_exceptions=False).stdout
    assert "What it needs" in text
    assert "cannot be foreseen: no plan for\\x1b[2J this" in " ".join(text.split())


def test_questions_are_asked_until_none_matters(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path, "comparison", 240)
    words = ["advise", "--data", str(file), "--model", str(model), "--recipe", str(tmp_path / "a.yaml"), "--ask"]
    result = CliRunner().invoke(cli, words, input="3\n" + "n\n" + "\n" * 12, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "What is it for?" in result.stdout
    assert "sft_weight" in (tmp_path / "a.yaml").read_text(encoding="utf-8")
    assert "Not known" not in result.stdout


def refused(words: list[str]) -> str:
    with pytest.raises((InputError, click.ClickException)) as failure:
        cli.main(words, standalone_mode=False)
    assert getattr(failure.value, "exit_code", 2) == 2
    return str(failure.value)


def test_a_file_that_somebody_else_wrote_is_left_alone(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: x\n", encoding="utf-8")
    file = write_rows(tmp_path, "comparison", 60)
    said = refused(["advise", "--data", str(file), "--model", str(model), "--recipe", str(mine)])
    assert "give another --recipe" in said
    assert mine.read_text(encoding="utf-8") == "model: x\n"


def test_wrong_arguments_are_named(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path, "comparison", 60)
    target = ["--recipe", str(tmp_path / "a.yaml")]
    assert "nowhere" in refused(["advise", "--data", str(file), "--model", str(tmp_path / "nowhere"), *target])
    assert "missing.json" in refused(["advise", "--data", "missing.json", "--model", str(model), *target])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    assert "empty.jsonl" in refused(["advise", "--data", str(empty), "--model", str(model), *target])


def test_advice_needs_no_torch(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path, "comparison", 60)
    words = ["advise", "--data", str(file), "--model", str(model), "--recipe", str(tmp_path / "a.yaml"), "--no-ask"]
    code = (
        "import sys\nfrom truing.cli.main import cli\n"
        f"cli.main({words!r}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
