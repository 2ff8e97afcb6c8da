"""A cleaned copy holds the sound rows as they were; the log says which are gone, and a second run drops nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit.broken import FAULTS
from tests.audit.folder import model_folder
from tests.audit.sound import FEW, Row, conversations, demonstrations, judgements, pairs, put
from truing.audit.cleaning import WHY, Request, clean, outvoted
from truing.cli.main import cli
from truing.core.errors import DataError, InputError
from truing.core.trees import Origin
from truing.data.examples import Comparison, Judgement
from truing.data.records import read
from truing.data.rewriting import Reading

QUICK = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def cleaned(file: str, *, name: str = "clean.jsonl", **asked: Any) -> tuple[list[Row], list[Row]]:
    """The rows of the copy and the entries of its log; a second run has to drop nothing."""
    before = Path(file).read_bytes()
    first, second, log = (Path(file).with_name(n) for n in (name, f"again.{name}", "log.jsonl"))
    request = Request(file, Reading(), **asked)
    clean(request, first, log, force=True, on_progress=lambda what, done, total: None)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    again = Request(str(first), Reading(), **asked)
    clean(again, second, log, force=True, on_progress=lambda what, done, total: None)
    assert log.read_text() == ""
    assert second.read_bytes() == first.read_bytes()
    assert Path(file).read_bytes() == before
    return [dict(record.values) for record in read(str(first)).records], entries


def dropped(entries: list[Row]) -> list[tuple[int, str]]:
    return [(entry["row"], entry["check"]) for entry in entries]


def test_sound_rows_stay_as_they_were_and_others_are_logged(tmp_path: Path) -> None:
    rows = [{**row, "id": n, "note": None} for n, row in enumerate(pairs(30))]
    bad = {
        4: {**rows[3], "rejected": " "},
        9: {**rows[8], "rejected": rows[8]["chosen"]},
        17: {**rows[16], "chosen": 5},
        22: rows[1],
    }
    kept, entries = cleaned(put(tmp_path, [bad.get(n, row) for n, row in enumerate(rows, start=1)]))
    assert kept == [row for n, row in enumerate(rows, start=1) if n not in bad]
    assert dropped(entries) == [(4, "rows"), (9, "identical_pair"), (17, "rows"), (22, "duplicates")]
    assert "rows.jsonl:4: 'rejected' is blank" in entries[0]["why"]
    assert entries[3]["why"].endswith("rows.jsonl:22: repeats an earlier row")
    assert {entry["done"] for entry in entries} == {"dropped"}


def test_sound_data_lose_nothing(tmp_path: Path) -> None:
    for rows in (pairs(40), judgements(40), demonstrations(40), conversations(40)):
        kept, entries = cleaned(put(tmp_path, rows))
        assert (kept, entries) == (rows, [])


def test_both_sides_of_a_contradiction_go(tmp_path: Path) -> None:
    rows = pairs(20)
    contrary = {**rows[2], "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    kept, entries = cleaned(put(tmp_path, [*rows, contrary]))
    assert dropped(entries) == [(3, "contradictions"), (21, "contradictions")]
    assert kept == [row for row in rows if row != rows[2]]


def test_by_majority_what_most_rows_say_stays_once(tmp_path: Path) -> None:
    rows = pairs(20)
    contrary = {**rows[2], "chosen": rows[2]["rejected"], "rejected": rows[2]["chosen"]}
    kept, entries = cleaned(put(tmp_path, [*rows, contrary, rows[2]]), contradictions="majority")
    assert dropped(entries) == [(21, "contradictions"), (22, "duplicates")]
    assert kept == rows


def test_near_duplicates_go_only_when_asked(tmp_path: Path) -> None:
    rows = demonstrations(20)
    file = put(tmp_path, [*rows, {**rows[4], "completion": rows[4]["completion"] + " Indeed."}])
    assert cleaned(file)[1] == []
    kept, entries = cleaned(file, near=True)
    assert (kept, dropped(entries)) == (rows, [(21, "near_duplicates")])


EDGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda e: e[0] != e[1]), max_size=14)


@given(edges=EDGES)
@QUICK
def test_what_a_majority_leaves_of_any_preferences_runs_in_no_circle(edges: list[tuple[int, int]]) -> None:
    examples = [
        Comparison("q", f"answer {a}", f"answer {b}", None, Origin("f", n)) for n, (a, b) in enumerate(edges, start=1)
    ]
    gone = {origin.row for origin in outvoted(examples)}
    left = {edge for n, edge in enumerate(edges, start=1) if n not in gone}
    votes = {edge: edges.count(edge) for edge in edges}
    assert all(votes[a, b] > votes.get((b, a), 0) for a, b in left)
    reach = set(left)
    for _ in range(4):
        reach |= {(a, d) for a, b in reach for c, d in reach if b == c}
    assert not any(a == b for a, b in reach)


def test_as_many_votes_for_either_leave_nothing() -> None:
    both = [Judgement("q", "x", n % 2 == 0, Origin("f", n)) for n in range(4)]
    assert outvoted(both) == tuple(Origin("f", n) for n in range(4))
    assert outvoted([*both, Judgement("q", "x", True, Origin("f", 4))]) == (Origin("f", 1), Origin("f", 3))


ELSEWHERE = ("a_pair_that_differs_behind_the_limit", "the_same_rows_in_two_files")
"""The one has a test of its own, the other is a fault of no single file."""

SPOILT = [fault for fault in FAULTS if fault.check in WHY and fault.name not in ELSEWHERE]


@pytest.mark.parametrize("fault", SPOILT, ids=lambda fault: fault.name)
def test_a_copy_no_longer_has_the_fault(fault: Any, tmp_path: Path) -> None:
    files = fault.make(tmp_path)
    count = len(read(files.paths[0]).records)
    if fault.rows is not None and len(fault.rows) == count:
        with pytest.raises(DataError, match="no row would be left"):
            cleaned(files.paths[0])
        return
    near = fault.check == "near_duplicates"
    kept, entries = cleaned(files.paths[0], near=near)
    assert entries
    assert len(kept) + len(entries) == count
    if fault.rows is not None:
        assert [row for row, _ in dropped(entries)] == sorted(fault.rows)


def test_with_a_model_pairs_that_differ_behind_the_limit_go_too(tmp_path: Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.check == "identical_after_cut")
    files = fault.make(tmp_path)
    asked = {**files.asked, "model": model_folder(tmp_path / "model")}
    kept, entries = cleaned(files.paths[0], **asked)
    assert dropped(entries) == [(31, "identical_after_cut")]
    assert len(kept) == len(pairs(FEW)) - 1
    assert cleaned(files.paths[0])[1] == []


@pytest.mark.parametrize("name", ["clean.csv", "clean.parquet", "clean.json.gz"])
def test_a_copy_may_be_of_another_type(name: str, tmp_path: Path) -> None:
    rows = pairs(20)
    assert cleaned(put(tmp_path, [*rows, rows[0]]), name=name)[0] == rows


def test_files_of_the_user_are_never_written_to(tmp_path: Path) -> None:
    file = put(tmp_path, pairs(20))
    for output, log in ((file, None), (str(tmp_path / "a.jsonl"), file), (str(tmp_path / "a.jsonl"), "a.json")):
        with pytest.raises(InputError):
            clean(Request(file, Reading()), Path(output), log and Path(log), force=True, on_progress=lambda *told: None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_what_cannot_be_read_is_not_cleaned(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "chosen": "x", "rejected": "y"}\n{"prompt": ')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: malformed JSON"):
        cleaned(str(tmp_path / "rows.jsonl"))


def test_scores_are_converted_first(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"prompt": f"q{n // 2}", "response": f"x{n}", "score": rng.random()} for n in range(20)]
    with pytest.raises(DataError, match="rows are scores; make comparisons or judgements of them first"):
        cleaned(put(tmp_path, rows))


def test_without_a_model_nothing_here_needs_torch(tmp_path: Path) -> None:
    file = put(tmp_path, pairs(20))
    commands = [
        ["clean", file, "--output", str(tmp_path / "a.jsonl")],
        ["split", file, "--output", str(tmp_path / "b")],
        ["convert", file, "--to", "hh", "--output", str(tmp_path / "c.csv"), "--lossy"],
    ]
    code = (
        "import sys\nfrom truing.cli.main import cli\n"
        f"for words in {commands!r}:\n    cli.main(['data', *words], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_the_command_tells_what_it_dropped_and_where_it_says_why(tmp_path: Path) -> None:
    rows = pairs(20)
    file = put(tmp_path, [*rows, rows[0], {**rows[1], "chosen": ""}])
    asked = ["data", "clean", file, "--output", str(tmp_path / "rows.clean.jsonl"), "--for", "dpo"]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "dropped 1 row: cannot be used (rows)" in done.output
    assert "dropped 1 row: repeats an earlier row (duplicates)" in done.output
    assert "20 of 22 rows kept" in done.output
    log = (tmp_path / "rows.clean.dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in log] == [21, 22]
