"""What strangers wrote is shown by every command, and does nothing: neither in a terminal nor in a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.report.folders import DATA, SAMPLES, STAGE, dpo_rows, make_run
from truing.cli.main import cli
from truing.core.errors import TruingError
from truing.core.text import harmless
from truing.report.write import report_page
from truing.training.progress import Lines
from truing.world.base_model import write_base_model

MARKS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x' --><!--]]>{{ 7*7 }}"
STEERS = "\x1b[31m\x1b]8;;http://x\x07link\x1b]8;;\x07\x9b2J\u202etfel\u2066\x00\x08\r$\\frac{$"
EVIL = MARKS + STEERS
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


class Elements(HTMLParser):
    """Every element of a page with the names of its attributes, and what leads anywhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.led: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[(tag, *sorted(name for name, _ in attrs))] += 1
        self.led += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href")]

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:50]}")


def run_with(folder: Path, words: str) -> Path:
    """A run in which every text that may come from outside is `words`."""
    rows = [{**row, f"own/{words}": 1.0 + row["step"]} for row in dpo_rows(4)]
    stage = {**STAGE, "model": f"models/{words}", "data": {"path": words}, "objective": {"use": words}, "name": words}
    samples = [{**sample, "prompt": words, "completion": words} for sample in SAMPLES]
    made = make_run(folder, rows, stage=stage, samples=samples)
    data: dict[str, Any] = {**DATA, "notes": [words], "dropped": {words: {words: [1]}}}
    data["files"] = [{"name": words, "format": words, "rows": words}]
    for name, value in (
        ("data", data),
        ("environment", {words: words}),
        ("plan", {"moment": words, "bytes": {words: 5}}),
    ):
        (made / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    event = {"step": 2, "monitor": words, "action": "stop", "sentence": words}
    (made / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    parity = {"differences": [{"form": words, "largest": 0.1}], "complaint": words}
    (made / "parity.json").write_text(json.dumps(parity), encoding="utf-8")
    return made


@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_no_element_of_a_page_comes_from_data(tmp_path: Path, several: bool) -> None:
    pages = []
    for name, words in (("plain", "words"), ("evil", EVIL)):
        runs = [run_with(tmp_path / name / str(n), words) for n in range(1 + several)]
        pages.append(Elements(report_page(runs)))
    plain, evil = pages
    assert evil.found == plain.found
    assert all(re.fullmatch(r"data:,|#[a-z0-9-]+", link) for link in evil.led)


def test_a_page_shows_what_would_steer_as_text(tmp_path: Path) -> None:
    page = report_page([run_with(tmp_path / "evil", EVIL)])
    assert not STEERING.search(page)
    assert "\\x1b]8;;" in page


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """Data, recipes and models whose every word is evil."""
    rows = [
        {"prompt": f"{EVIL} {n}", "chosen": f"good {EVIL} {n}", "rejected": f"bad {EVIL}", EVIL: EVIL} for n in range(8)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "odd.json").write_text(json.dumps([{EVIL: EVIL}]), encoding="utf-8")
    write_base_model(tmp_path / "model")
    recipe = {
        "model": str(tmp_path / "model"),
        "template": "plain",
        "objective": {"use": "dpo"},
        "data": {"path": str(tmp_path / "pairs.json"), "max_length": 64},
        "optim": {"max_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**recipe, EVIL: EVIL}), encoding="utf-8")
    (tmp_path / "worse.yaml").write_text(yaml.safe_dump({**recipe, "model": EVIL.replace("\0", "")}), encoding="utf-8")
    run_with(tmp_path / "run", EVIL)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "data check pairs.json",
        "data check pairs.json --json -",
        "data check odd.json",
        "data convert pairs.json --to messages --output out.jsonl",
        "data clean pairs.json --output clean.json",
        "data split pairs.json --output split",
        "train recipe.yaml --dry-run",
        "train bad.yaml --dry-run",
        "train worse.yaml --dry-run",
        "plan recipe.yaml",
        "plan worse.yaml",
        "advise pairs.json --model model",
        "advise odd.json",
        "runs run",
        "runs run --json",
        "report run",
        "verify run",
        "resume run",
        "chat run --prompt x",
        "score run pairs.json",
        "methods x\x1b[31m",
    ],
)
def test_no_command_lets_data_steer_the_terminal(ground: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ground)
    done = CliRunner().invoke(cli, command.split())
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, TruingError), done.exception
    else:
        assert not STEERING.search(done.output.replace("\x1b[?25h", "")), STEERING.search(done.output)


def test_whatever_a_reporter_is_told_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    told = Lines()
    told.say(EVIL)
    told.warn(EVIL)
    told.show("x", [(EVIL, True)])
    assert not STEERING.search(capsys.readouterr().out)
    assert harmless(harmless(EVIL)) == harmless(EVIL)
