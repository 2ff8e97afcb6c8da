"""`truing train` and `truing resume` end with a report."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.report.folders import dpo_rows, make_run
from truing.cli.main import cli
from truing.core.errors import NonFinite
from truing.report import write


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that `truing resume` ends in no time."""
    folder = make_run(tmp_path / "run", dpo_rows())
    monkeypatch.setattr("truing.build.chain.resume", lambda run, reporter, ranks: run)
    return folder


def test_resuming_ends_with_a_report_and_says_where(trained: Path) -> None:
    done = CliRunner().invoke(cli, ["resume", str(trained)], catch_exceptions=False)
    assert done.output == f"report: {trained / 'report.html'}\n"
    assert (trained / "report.html").is_file()


def test_a_report_that_fails_is_a_warning(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(paths: list[Path]) -> Path:
        raise ZeroDivisionError("\x1b[31m no page")

    monkeypatch.setattr(write, "write_report", fails)
    done = CliRunner().invoke(cli, ["resume", str(trained)], catch_exceptions=False)
    assert done.exit_code == 0
    assert rf"warning: no report was written: \x1b[31m no page; try `truing report {trained}`" in done.output


def test_a_run_that_a_guard_stopped_has_a_report_and_stays_an_error(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(run: Path, reporter: object, ranks: object) -> None:
        raise NonFinite("the loss was not finite")

    monkeypatch.setattr("truing.build.chain.resume", stopped)
    done = CliRunner().invoke(cli, ["resume", str(trained)])
    assert isinstance(done.exception, NonFinite)
    assert (trained / "report.html").is_file()


def test_the_report_of_several_runs_says_where_it_is(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, dpo_rows())) for name in "ab"]
    assert CliRunner().invoke(cli, ["report", *runs]).output == f"{tmp_path / 'report.html'}\n"


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(click.UsageError, match="runs"):
        cli.main(["report"], standalone_mode=False)
