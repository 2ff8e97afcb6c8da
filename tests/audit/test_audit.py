from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.audit.made import (
    Row,
    answer,
    audited,
    complaints,
    conversations,
    demonstrations,
    finding,
    judgements,
    pairs,
    places,
    prompts,
    text,
    write,
)
from truing.audit.audit import CHECKS, audit
from truing.audit.purposes import kind_for
from truing.core.errors import InputError
from truing.core.methods import KINDS, METHODS
from truing.objectives.registry import discover


@pytest.mark.parametrize("rows", [demonstrations, pairs, judgements, conversations])
def test_sound_rows_get_no_complaint(rows: Callable[[], list[Row]], tmp_path: Path) -> None:
    found = audited(tmp_path, rows())
    assert (found.verdict, complaints(found)) == ("ok", [])
    assert not any(each.remedy for each in found.findings)


def test_sound_prompts_and_texts_get_no_complaint(tmp_path: Path) -> None:
    assert complaints(audited(tmp_path, [{"prompt": asked} for asked in prompts(1200)])) == []
    rng = random.Random(0)
    assert complaints(audited(tmp_path, [{"text": text(rng, 50)} for _ in range(1200)])) == []


@pytest.mark.parametrize("purpose", ["dpo", "reward", "kto", "sft", "ppo"])
def test_sound_pairs_get_no_complaint_whatever_they_train(purpose: str, tmp_path: Path) -> None:
    found = audited(tmp_path, pairs(), purpose=purpose)
    assert (found.purpose, complaints(found)) == (purpose, [])
    assert (found.facts.rows, found.facts.comparisons) == (2400, 2400)


def test_every_method_is_known_by_what_it_learns_from() -> None:
    assert {name: kind for kind in KINDS for name in METHODS[kind]} == {n: c.examples for n, c in discover().items()}


def test_an_unknown_purpose_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'kto'"):
        kind_for("ktoo")


def test_checks_come_in_their_order_and_levels_decide_the_verdict(tmp_path: Path) -> None:
    rows = pairs(300)
    found = audited(tmp_path, rows)
    names = [each.check for each in found.findings]
    assert names == sorted(names, key=CHECKS.index)
    assert (complaints(found), found.verdict) == ([("amount", "warn")], "warn")
    rows[4]["rejected"] = rows[4]["chosen"]
    assert audited(tmp_path, rows).verdict == "stop"


def test_all_bad_rows_are_found_not_only_the_first(tmp_path: Path) -> None:
    rows: list[Row] = list(pairs(1200))
    for place in range(10, 30):
        rows[place] = {**rows[place], "chosen": " "}
    rows[50] = {"prompt": "a", "chosen": "b"}
    rows[51] = {**rows[51], "rejected": 7}
    found = finding(audited(tmp_path, rows), "rows")
    assert found.level == "stop"
    assert places(found) == [*range(11, 31), 51, 52]
    assert "22 rows (1.8 %)" in found.sentence
    assert "empty answer 20" in found.sentence
    assert len(found.examples) == 3
    assert "truing data clean" in found.remedy


def test_a_label_that_is_no_label_and_turns_that_do_not_fit_have_their_checks(tmp_path: Path) -> None:
    rows: list[Row] = list(judgements())
    rows[7]["label"] = "maybe"
    assert places(finding(audited(tmp_path, rows), "rows")) == [8]
    talks = conversations()
    talks[3]["messages"] = [{"role": "system", "content": "be kind"}]
    talks[4]["messages"] = talks[4]["messages"][:1]
    found = audited(tmp_path, talks)
    assert places(finding(found, "roles")) == [4, 5]
    assert finding(found, "rows").level == "ok"


def test_identical_answers_are_told_with_their_rows(tmp_path: Path) -> None:
    rows = pairs()
    for place in (5, 9):
        rows[place]["rejected"] = rows[place]["chosen"]
    found = finding(audited(tmp_path, rows), "identical_pair")
    assert (found.level, places(found)) == ("stop", [6, 10])


def test_rows_of_another_kind_are_told_apart_from_rows_that_lack_something(tmp_path: Path) -> None:
    rows: list[Row] = [*pairs(1200), *demonstrations(40), {"prompt": "a", "chosen": "b"}]
    found = audited(tmp_path, rows)
    mixed = finding(found, "mixed")
    assert (mixed.level, places(mixed)) == ("stop", list(range(1201, 1241)))
    assert places(finding(found, "rows")) == [1241]


def test_a_demonstration_among_judgements_has_no_label_where_a_bad_row_has_none_in_it(tmp_path: Path) -> None:
    rows: list[Row] = [*judgements(1200), *demonstrations(40), {"prompt": "a", "completion": "b", "label": None}]
    found = audited(tmp_path, rows)
    mixed = finding(found, "mixed")
    assert (mixed.level, places(mixed)) == ("stop", list(range(1201, 1241)))
    assert places(finding(found, "rows")) == [1241]


def test_files_of_several_kinds_are_read_each_as_what_it_is(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", rows) for n, rows in enumerate((pairs(1200), judgements(1200, seed=1)))]
    found = audit(files)
    assert complaints(found) == [("mixed", "warn")]
    facts = found.facts
    assert (facts.comparisons, facts.judgements, facts.desirable, facts.rows) == (1200, 1200, 600, 2400)
    assert complaints(audit(files, purpose="kto")) == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": ', ":2: malformed JSON"),
        (gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 500)[:-20], "ends early"),
        (b'{"prompt": NaN}\n', "NaN"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_finding(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    found = audit([str(tmp_path / "rows.jsonl"), write(tmp_path / "sound.jsonl", demonstrations())])
    assert found.verdict == "stop"
    assert part in finding(found, "readable").sentence
    assert found.facts.rows == 1200, "the other file is checked all the same"


def test_a_file_of_no_known_format_is_a_finding_and_columns_or_format_mend_it(tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "reply": row["completion"]} for row in demonstrations()]
    found = audited(tmp_path, rows)
    assert (finding(found, "format").level, found.facts.rows) == ("stop", 0)
    assert "--columns" in finding(found, "format").remedy
    named = audited(tmp_path, rows, columns={"prompt": "question", "completion": "reply"})
    assert complaints(named) == []
    assert finding(audited(tmp_path, pairs(), format="comparison"), "format").level == "ok"


def test_pairs_cannot_be_made_of_demonstrations(tmp_path: Path) -> None:
    found = finding(audited(tmp_path, demonstrations(), purpose="dpo"), "format")
    assert found.level == "stop"
    assert "dpo needs comparisons" in found.sentence


@pytest.mark.parametrize(("repeated", "level"), [(48, "ok"), (72, "warn"), (300, "strong")])
def test_repeats_are_counted_and_graded(repeated: int, level: str, tmp_path: Path) -> None:
    rows = demonstrations()
    rows += rows[:repeated]
    found = audited(tmp_path, rows)
    exact = finding(found, "duplicates")
    assert (exact.level, places(exact)) == (level, list(range(1201, 1201 + repeated)))
    assert exact.figures["share"] == pytest.approx(repeated / len(rows)) == found.facts.duplicates
    assert finding(found, "near_duplicates").rows == (), "what repeats exactly is not also near"


def test_near_repeats_are_found_by_prompt_and_answers_together(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = demonstrations()
    long = [{"prompt": text(rng, 60), "completion": text(rng, 60)} for _ in range(200)]
    near = [{key: value + " indeed" for key, value in row.items()} for row in long]
    again = [{**row, "completion": text(rng, 60)} for row in long]  # other answers to the same prompts
    found = finding(audited(tmp_path, [*rows, *long, *near, *again]), "near_duplicates")
    assert (found.level, places(found)) == ("warn", list(range(1401, 1601)))


def test_a_prompt_in_train_and_test_stops_and_a_near_one_warns(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = demonstrations()
    rows[20]["prompt"] = text(rng, 60)
    clean = write(tmp_path / "other.jsonl", demonstrations(50, seed=5))
    assert finding(audited(tmp_path, rows, test=[clean]), "leakage").level == "ok"
    near = [*demonstrations(50, seed=5), {"prompt": rows[20]["prompt"] + " please", "completion": "yes"}]
    found = finding(audited(tmp_path, rows, test=[write(tmp_path / "near.jsonl", near)]), "leakage")
    assert (found.level, places(found)) == ("warn", [21])
    shared = [*demonstrations(50, seed=5), {"prompt": rows[3]["prompt"], "completion": "yes"}]
    found = finding(audited(tmp_path, rows, test=[write(tmp_path / "shared.jsonl", shared)]), "leakage")
    assert (found.level, places(found), found.figures["share"]) == ("stop", [4], pytest.approx(1 / 51))
    turns = [{"role": "user", "content": rows[3]["prompt"]}, {"role": "assistant", "content": "yes"}]
    talk = write(tmp_path / "talk.jsonl", [{"messages": turns}])
    found = finding(audited(tmp_path, rows, test=[talk]), "leakage")
    assert (found.level, places(found)) == ("stop", [4])


def test_texts_with_controls_broken_encodings_and_markup_are_quoted(tmp_path: Path) -> None:
    rows = demonstrations()
    rows[2]["completion"] += " \x1b[31mred"
    found = finding(audited(tmp_path, rows), "text")
    assert (found.level, places(found)) == ("warn", [3])
    assert "\x1b[31mred" in found.examples[0]
    for row in rows[100:180]:
        row["completion"] += " cafÃ© \ufffd"
    found = finding(audited(tmp_path, rows), "text")
    assert (found.level, len(found.rows)) == ("strong", 81)
    assert "80 rows (6.7 %)" in found.sentence


def test_words_of_other_languages_are_no_broken_text(tmp_path: Path) -> None:
    rows = [
        {**row, "completion": row["completion"] + " São João “naïve” Ângela â l'âge «été» 你好 👩‍👩‍👧"}
        for row in demonstrations()
    ]
    assert complaints(audited(tmp_path, rows)) == []


def test_the_limit_counts_the_rows_of_all_files(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", demonstrations(40, seed=n)) for n in (0, 1)]
    assert [audit(files, limit=limit).facts.rows for limit in (30, 60, 100)] == [30, 60, 80]


def test_facts_count_turns_prompts_and_words(tmp_path: Path) -> None:
    rows = [
        *conversations(1200),
        {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"}]},
    ]
    facts = audited(tmp_path, rows).facts
    assert facts.multi_turn == pytest.approx(400 / 1201)
    assert (facts.prompts, facts.length_unit) == (1201, "words")
    asked = [len(row["messages"][0]["content"].split()) for row in rows]
    answered = [sum(len(turn["content"].split()) for turn in row["messages"][1:]) for row in rows]
    assert facts.prompt_length.max == max(asked)
    assert facts.completion_length.max == max(answered)
    assert facts.longest == max(a + b for a, b in zip(asked, answered, strict=True))


def test_the_json_form_holds_everything_and_nothing_that_is_no_json(tmp_path: Path) -> None:
    rows = pairs(300)
    rows[4]["rejected"] = rows[4]["chosen"]
    found = audited(tmp_path, rows)
    whole = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert list(whole) == ["schema", "files", "purpose", "verdict", "findings", "facts"]
    assert [each["check"] for each in whole["findings"]] == [each.check for each in found.findings]
    (identical,) = [each for each in whole["findings"] if each["check"] == "identical_pair"]
    assert identical["rows"] == {str(tmp_path / "rows.jsonl"): [5]}
    assert whole["facts"]["shortcut"]["low"] < whole["facts"]["shortcut"]["value"]


def test_one_row_is_checked_without_a_fault(tmp_path: Path) -> None:
    rng = random.Random(0)
    one: dict[str, Any] = {"prompt": "a", "chosen": answer(rng, True), "rejected": answer(rng, False)}
    assert complaints(audited(tmp_path, [one])) == [("amount", "strong")]


def test_checking_without_a_model_imports_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(300))
    code = f"import sys; from truing.audit.audit import audit; audit([{path!r}], purpose='dpo')\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
