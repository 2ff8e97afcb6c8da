"""`truing verify` passes what a run wrote, cut and resumed or not, and notices whatever is changed afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.faults.lives import lives
from tests.faults.recipes import Ground
from truing.build.verify import verify_run
from truing.cli.main import cli
from truing.core.errors import GuardError, TruingError
from truing.training.progress import Silent

ALL = 1 << 62


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.write(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def cut(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that was killed in its second step of each stage, and resumed."""
    output = tmp_path_factory.mktemp("cut") / "run"
    recipe = ground.recipe(ground.stage("sft"), ground.stage("grpo"))
    assert len(lives(recipe, output, [2, 3], kinds=("update",))) == 2
    return output


def test_a_run_that_was_killed_is_identical_to_one_that_was_not(cut: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in cut.rglob("*")}
    listening = Heard()
    verify_run(cut, ALL, listening)
    assert sum("identical to an uninterrupted run" in line for line in listening.said) == 2
    assert listening.said[-1] == f"{cut}: all 15 checks passed"
    assert before == {file: file.stat().st_mtime_ns for file in cut.rglob("*")}, "nothing is changed"


def a_figure(run: Path) -> None:
    rows = (run / "2-grpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[1])
    rows[1] = json.dumps({**row, "objective/scores": row["objective/scores"] + 1e-7})
    (run / "2-grpo" / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def a_missing_step(run: Path) -> None:
    rows = (run / "1-sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "1-sft" / "metrics.jsonl").write_text("\n".join(rows[:1] + rows[2:]) + "\n", encoding="utf-8")


def a_weight(run: Path) -> None:
    file = run / "final" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def a_checkpoint(run: Path) -> None:
    (run / "1-sft" / "checkpoints" / "step-000003" / "state.json").unlink()


def what_it_answered(run: Path) -> None:
    file = run / "2-grpo" / "parity.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**found, "figures": [figure - 0.1 for figure in found["figures"]]}), encoding="utf-8")


def a_broken_file(run: Path) -> None:
    (run / "2-grpo" / "parity.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (a_figure, "FAULT  2-grpo, replay: step 2 differs: objective/scores was"),
        (a_missing_step, "FAULT  1-sft, metrics: 2 rows, whose steps are not 1 to 2"),
        (a_weight, "FAULT  result of the chain: adapter_model.safetensors does not match its SHA-256"),
        (a_checkpoint, "FAULT  1-sft, checkpoints: step-000003 is damaged (state.json is missing)"),
        (what_it_answered, "FAULT  2-grpo, as served: loaded anew, it differs by 0.1"),
        (a_broken_file, "FAULT  2-grpo, as served: a file that the run wrote has been damaged"),
    ],
)
def test_what_is_changed_afterwards_is_found(
    cut: Path, tmp_path: Path, harm: Callable[[Path], None], line: str
) -> None:
    shutil.copytree(cut, tmp_path / "run")
    harm(tmp_path / "run")
    listening = Heard()
    with pytest.raises(GuardError, match=r"1 of 15 checks failed|1 of 13 checks failed"):
        verify_run(tmp_path / "run", 2 if harm is a_figure else None, listening)
    assert any(said.startswith(line) for said in listening.said)


def test_other_data_or_another_start_are_found(ground: Ground, cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut, tmp_path / "run")
    file = tmp_path / "run" / "1-sft" / "environment.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["data"][0]["sha256"] = found["start_sha256"] = "0" * 64
    file.write_text(json.dumps(found), encoding="utf-8")
    listening = Heard()
    with pytest.raises(GuardError, match="2 of 13 checks failed"):
        verify_run(tmp_path / "run", None, listening)
    assert any("1-sft, data" in line and "has changed" in line for line in listening.said if "FAULT" in line)
    assert any("1-sft, start" in line for line in listening.said if "FAULT" in line)


def test_the_command_ends_with_code_3_where_something_is_wrong(cut: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["verify", str(cut)]).exit_code == 0
    shutil.copytree(cut, tmp_path / "run")
    a_weight(tmp_path / "run")
    found = CliRunner().invoke(cli, ["verify", str(tmp_path / "run")])
    assert isinstance(found.exception, TruingError)
    assert found.exception.exit_code == 3
    assert CliRunner().invoke(cli, ["verify", str(cut), "--replay", "none"]).exit_code == 2
    (tmp_path / "empty").mkdir()
    nothing = CliRunner().invoke(cli, ["verify", str(tmp_path / "empty")])
    assert isinstance(nothing.exception, TruingError)
    assert nothing.exception.exit_code == 2


def test_a_run_that_has_not_begun_is_none_to_complain_of(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    recipe = yaml.safe_dump(ground.recipe(ground.stage("sft")))
    (tmp_path / "run" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    listening = Heard()
    verify_run(tmp_path / "run", 5, listening)
    assert listening.said[0] == "ok     stage: not begun"
