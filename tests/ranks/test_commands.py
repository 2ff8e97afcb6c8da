"""`--nproc`: one voice, the code of the rank that fails, and a run that goes on whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.build.runs import metrics
from tests.ranks.recipes import furthest, recipe, write_ground
from truing.build.chain import resume, run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent

PATIENCE = 120
"""Seconds for a command on a busy machine."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ground(tmp_path_factory.mktemp("ground"))


def started(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "truing", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def written(ground: Path, folder: Path, steps: int) -> Path:
    values = recipe(ground, "dpo", lora=True, optim={"lr": 1e-3, "max_steps": steps})
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def wait_for_steps(output: Path, count: int) -> None:
    ends = time.monotonic() + PATIENCE
    while not ((output / "metrics.jsonl").is_file() and len(metrics(output)) >= count):
        assert time.monotonic() < ends, "the run makes no steps"
        time.sleep(0.1)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_what_is_wrong_is_said_once_with_its_code(ground: Path, tmp_path: Path) -> None:
    file = written(ground, tmp_path, 2)
    output = ["--output", str(tmp_path / "run")]
    process = started(["train", str(file), "--nproc", "3", "--set", "parallel.shard=2", *output])
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert said.count("parallel.shard is 2, which does not divide the 3 processes; give 1, all, or a divisor") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("by", "code"), [(signal.SIGKILL, 4), (signal.SIGTERM, 143)], ids=["kill", "term"])
def test_a_run_whose_end_was_asked_for_or_forced_goes_on(
    by: signal.Signals, code: int, ground: Path, tmp_path: Path
) -> None:
    file, output = written(ground, tmp_path, 12), tmp_path / "run"
    process = started(["train", str(file), "--nproc", "2", "--output", str(output)])
    wait_for_steps(output, 3)
    os.kill(children_of(process.pid)[-1] if by == signal.SIGKILL else process.pid, by)
    began = time.monotonic()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert time.monotonic() - began < 30, "the others do not wait for one that is gone"
    assert "Traceback" not in said
    resume(output, Silent())
    run(recipe_from(yaml.safe_load(file.read_text(encoding="utf-8"))), tmp_path / "alone", Silent())
    assert furthest(tmp_path / "alone", output)[0] < 1e-5


@pytest.mark.ranks
def test_a_guard_ends_all_ranks_with_its_code(ground: Path, tmp_path: Path) -> None:
    file = written(ground, tmp_path, 20)
    process = started(["train", str(file), "--nproc", "2", "--set", "optim.lr=1e30", "--output", str(tmp_path / "run")])
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert said.count("error: 3 steps in a row") == 1
