from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audit.made import demonstrations, pairs, write
from tests.pages.test_page import outline
from truing.cli.main import main


def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    monkeypatch.setattr(sys, "argv", ["truing", "data", "check", *arguments])
    code = 0
    try:
        main()
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_warnings_exit_with_0_and_faults_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = pairs(300)
    code, said = check(capsys, monkeypatch, write(tmp_path / "rows.jsonl", rows))
    assert (code, said.split(":")[0]) == (0, "usable, with warnings")
    rows[4]["rejected"] = rows[4]["chosen"]
    code, said = check(capsys, monkeypatch, write(tmp_path / "rows.jsonl", rows))
    assert (code, said.split(":")[0]) == (2, "not fit to train on")
    assert "rows.jsonl:5" in said


@pytest.mark.parametrize(
    "arguments", [("--for", "dpoo"), ("--columns", "prompt"), ("--template", "plain"), ("--model", "/nowhere/at/all")]
)
def test_wrong_arguments_exit_with_2_and_no_traceback(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, said = check(capsys, monkeypatch, write(tmp_path / "rows.jsonl", pairs(10)), *arguments)
    assert code == 2
    assert "Traceback" not in said


def test_data_steer_neither_the_terminal_nor_the_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = demonstrations(300)
    rows[0]["completion"] = "<script>alert(1)</script> \x1b]0;owned\x07"
    page = tmp_path / "page.html"
    _, said = check(capsys, monkeypatch, write(tmp_path / "[red]rows.jsonl", rows), "--html", str(page))
    assert "\x1b" not in said
    assert "\\x1b]0;owned" in said
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "\x1b" not in html
    assert "[red]rows.jsonl" in said, "markup of the terminal is not read in names"


def test_json_alone_is_printed_with_a_dash_and_written_to_a_file_otherwise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(300))
    _, said = check(capsys, monkeypatch, path, "--json", "-")
    check(capsys, monkeypatch, path, "--json", str(tmp_path / "found.json"))
    assert json.loads(said) == json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    code, said = check(capsys, monkeypatch, path, "--json", str(tmp_path / "nowhere" / "found.json"))
    assert (code, "found.json" in said) == (4, True)


def test_the_page_is_whole_and_names_the_verdict_every_check_and_the_lengths(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    check(capsys, monkeypatch, write(tmp_path / "rows.jsonl", pairs(300)), "--html", str(page))
    html = page.read_text(encoding="utf-8")
    outline(html)
    for part in ("usable, with warnings", "warn: amount", "shortcut", "Lengths of completions", "distinct prompts"):
        assert part in html


def test_a_narrow_pipe_gets_plain_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(300))
    command = [sys.executable, "-m", "truing", "data", "check", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) <= 120


def test_a_file_without_a_usable_row_has_a_verdict_and_no_facts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, said = check(capsys, monkeypatch, str(tmp_path / "nowhere.jsonl"), "--html", str(page))
    assert code == 2
    assert "no such file" in said
    assert "longest row" not in said + page.read_text(encoding="utf-8")
