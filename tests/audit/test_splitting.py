"""A split keeps prompts together, rows as they were, and every row on its side when others are added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.audit import sound
from truing.audit.splitting import split
from truing.cli.main import cli
from truing.core.errors import DataError
from truing.core.trees import Origin
from truing.data.examples import words_key
from truing.data.records import Record, read
from truing.data.rewriting import Reading
from truing.data.splitting import Keyed, choose_tested

Row = dict[str, object]


def put(folder: Path, rows: list[Row], name: str = "in.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def cut(file: Path, share: float = 0.25, seed: int = 0, near: bool = False) -> tuple[list[Row], list[Row]]:
    train, test = file.with_name("train.jsonl"), file.with_name("test.jsonl")
    split(str(file), train, test, Reading(), share=share, seed=seed, near=near, force=True)
    one, other = ([dict(record.values) for record in read(str(side)).records] for side in (train, test))
    return one, other


def pair(n: int, **more: object) -> Row:
    return {"prompt": f"question {n // 2}", "chosen": f"x{n}", "rejected": f"y{n}", "id": n, **more}


def test_every_row_is_on_one_side_unchanged_and_in_order(tmp_path: Path) -> None:
    rows = [pair(n, margin=n / 4, note=None) for n in range(200)]
    train, test = cut(put(tmp_path, rows))
    assert [row for row in rows if row in train] == train
    assert [row for row in rows if row in test] == test
    assert len(train) + len(test) == len(rows)


def test_no_prompt_is_on_both_sides_and_the_share_is_of_prompts(tmp_path: Path) -> None:
    train, test = cut(put(tmp_path, [pair(n) for n in range(2000)]))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert len({row["prompt"] for row in test}) / 1000 == pytest.approx(0.25, abs=0.05)  # 3.6 standard deviations


def test_a_row_stays_on_its_side_when_others_are_added(tmp_path: Path) -> None:
    few = cut(put(tmp_path, [pair(n) for n in range(400)]))
    many = cut(put(tmp_path, [pair(n) for n in range(-200, 800)]))
    for some, more in zip(few, many, strict=True):
        assert all(row in more for row in some)


def test_a_seed_gives_the_same_split_again_and_another_one_another(tmp_path: Path) -> None:
    file = put(tmp_path, [pair(n) for n in range(100)])
    assert cut(file, seed=1) == cut(file, seed=1)
    assert cut(file, seed=1) != cut(file, seed=2)


def test_of_few_judgements_both_labels_are_on_both_sides(tmp_path: Path) -> None:
    labels = [n < 3 for n in range(60)]
    rows: list[Row] = [{"prompt": f"q{n}", "completion": "x", "label": label} for n, label in enumerate(labels)]
    for seed in range(8):
        for side in cut(put(tmp_path, rows), share=0.1, seed=seed):
            assert {row["label"] for row in side} == {True, False}


def test_a_prompt_with_both_labels_stays_whole(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": f"q{n // 2}", "completion": f"x{n}", "label": n % 2 == 0 or n < 20} for n in range(100)
    ]
    train, test = cut(put(tmp_path, rows))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


def test_prompts_that_belong_together_are_on_one_side() -> None:
    rows = [Keyed(Record({}, Origin("f", n)), words_key(f"q{n}"), f"q{n}", None) for n in range(40)]
    together = {row.key: rows[n - n % 4].key for n, row in enumerate(rows)}
    held = choose_tested(rows, 0.3, 0, together)
    sides = [row.key in held for row in rows]
    assert 0 < sum(sides) < 40
    for first in range(0, 40, 4):
        assert len(set(sides[first : first + 4])) == 1


def test_prompts_that_are_nearly_the_same_are_told_or_kept_together(tmp_path: Path) -> None:
    rows = sound.demonstrations(40)
    alike = [{**row, "prompt": row["prompt"] + end} for row in rows for end in ("", " Please.", " Please, do.")]
    file = put(tmp_path, alike)
    told = split(
        str(file), tmp_path / "a.jsonl", tmp_path / "b.jsonl", Reading(), share=0.3, seed=0, near=False, force=False
    )
    assert "give --near to keep them together" in told[-1]
    train, test = cut(file, near=True)
    starts = [{str(row["prompt"]).partition("?")[0] for row in side} for side in (train, test)]
    assert not starts[0] & starts[1]
    assert len(train) + len(test) == 120
    assert len(test) % 3 == 0


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all rows have one prompt"):
        cut(put(tmp_path, [pair(0), pair(1)]))


def test_two_prompts_are_one_on_each_side(tmp_path: Path) -> None:
    train, test = cut(put(tmp_path, [pair(0), pair(2)]), share=0.001)
    assert (len(train), len(test)) == (1, 1)


def test_bad_rows_are_named_before_anything_is_written(tmp_path: Path) -> None:
    file = put(tmp_path, [pair(0), pair(2), {"prompt": "q", "chosen": "x", "rejected": "x"}])
    with pytest.raises(DataError, match=r"in\.jsonl:3: 'chosen' and 'rejected' are the same.*\n.*truing data clean"):
        cut(file)
    assert not (tmp_path / "train.jsonl").exists()


def test_scored_rows_of_a_prompt_stay_together(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": f"q{n // 3}", "response": f"x{n}", "score": n % 3} for n in range(90)]
    train, test = cut(put(tmp_path, rows))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert len(train) + len(test) == 90


def test_the_command_keeps_type_and_the_names_of_columns(tmp_path: Path) -> None:
    rows = ["frage,antwort", *(f'"q{n}, or not",x{n}' for n in range(30))]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(rows) + "\n")
    named = ["--columns", "prompt=frage", "--columns", "completion=antwort"]
    asked = ["data", "split", str(file), "--output", str(tmp_path / "parts"), *named]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0
    sides = [read(str(tmp_path / "parts" / name)) for name in ("train.csv", "test.csv")]
    assert [side.columns for side in sides] == [("frage", "antwort")] * 2
    assert sum(len(side.records) for side in sides) == 30
    both = CliRunner().invoke(cli, [*asked, "--train", "a.csv"])
    assert both.exit_code == 2
