from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.report.folders import dpo_rows, make_run
from truing.cli.main import cli
from truing.core.errors import RunError
from truing.report.listing import LEFT_OUT_FIRST, list_runs, table
from truing.report.runs import find_runs, read_run, stages_of
from truing.training.run_directory import RunDirectory


def shown(folder: Path, width: int) -> str:
    written = io.StringIO()
    Console(width=width, file=written).print(table(list_runs([folder]), width))
    return written.getvalue()


def test_runs_are_listed_in_the_order_of_their_last_change(tmp_path: Path) -> None:
    for name, changed in (("late", 3000), ("early", 1000), ("deep/middle", 2000)):
        run = make_run(tmp_path / name, dpo_rows())
        os.utime(run / "metrics.jsonl", (changed, changed))
    assert [run.name for run in list_runs([tmp_path])] == ["early", "deep/middle", "late"]


def test_a_row_has_the_figures_of_the_metrics_file(tmp_path: Path) -> None:
    rows = dpo_rows()
    make_run(tmp_path / "one", rows, planned=40, finished=False)
    (run,) = list_runs([tmp_path])
    assert (run.method, run.model, run.adapter) == ("dpo", "base", "lora 8")
    assert (run.state, run.steps, run.planned_steps) == ("stopped", 10, 40)
    assert (run.loss, run.metric, run.value) == (rows[-1]["loss"], "rewards/accuracies", rows[-1]["rewards/accuracies"])
    assert (run.peak_memory_bytes, run.seconds) == (rows[-1]["memory_bytes"], 5.0)


def test_a_run_whose_lock_is_held_is_running_and_reading_it_takes_no_lock(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one", dpo_rows(), finished=False)
    directory = RunDirectory.open(folder)
    assert read_run(folder).state == "stopped"
    directory.lock()
    assert read_run(folder).state == "running"
    directory.close()
    assert read_run(folder).state == "stopped"
    directory.lock()
    directory.close()


def test_a_folder_given_twice_lists_its_runs_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "one", dpo_rows())
    assert len(list_runs([tmp_path, tmp_path / "a", tmp_path / "a" / "one"])) == 1


def test_nothing_inside_of_a_run_is_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", dpo_rows())
    make_run(run / "final" / "inner", dpo_rows())
    assert find_runs(tmp_path) == [run]
    assert stages_of(run) == []


def test_a_narrow_terminal_shows_fewer_columns_and_a_wide_one_all(tmp_path: Path) -> None:
    make_run(tmp_path / "one", dpo_rows())
    wide, narrow = shown(tmp_path, 200), shown(tmp_path, 60)
    assert all(name in wide for name in LEFT_OUT_FIRST)
    assert not any(f" {name} " in narrow for name in LEFT_OUT_FIRST[:2])
    assert "accuracy 0.623" in narrow


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    make_run(tmp_path / "a\x1b[31mb", dpo_rows())
    assert "\x1b" not in shown(tmp_path, 200)
    assert r"a\x1b[31mb" in shown(tmp_path, 200)


def test_json_is_what_the_table_is_made_of(tmp_path: Path) -> None:
    make_run(tmp_path / "one", dpo_rows())
    done = CliRunner().invoke(cli, ["runs", str(tmp_path), "--json"])
    assert json.loads(done.output) == [run.as_json() for run in list_runs([tmp_path])]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        list_runs([tmp_path / "nowhere"])


def test_a_folder_without_runs_lists_nothing(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["runs", str(tmp_path)]).output == "no runs here\n"
    assert CliRunner().invoke(cli, ["runs", str(tmp_path), "--json"]).output == "[]\n"
