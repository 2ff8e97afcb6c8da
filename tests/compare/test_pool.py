"""Data of a comparison: what serves which method, and prompts that are never on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.compare.pool import Pile, Split, check_fits, choose, groups_of, keys_of, read_pile
from truing.core.errors import DataError
from truing.core.trees import ExampleKind
from truing.data.examples import Judgement, Prompt
from truing.data.settings import DataSettings


def pile(folder: Path, name: str, rows: list[dict[str, Any]]) -> Pile:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_pile(DataSettings(path=str(file)))


def pairs(folder: Path, count: int = 20) -> Pile:
    rows = [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "target": n} for n in range(count)]
    return pile(folder, "pairs.jsonl", rows)


def thumbs(folder: Path, first: int = 10, count: int = 20) -> Pile:
    rows = [{"prompt": f"Q{n}", "completion": f"{n}", "label": n % 2 == 0} for n in range(first, first + count)]
    return pile(folder, "thumbs.jsonl", rows)


def test_no_prompt_is_on_both_sides_whichever_file_it_is_in(tmp_path: Path) -> None:
    piles = (pairs(tmp_path), thumbs(tmp_path))
    split = Split.of(piles, 0.4, 200)
    kinds: tuple[ExampleKind, ...] = ("demonstration", "comparison", "judgement", "prompt")
    for kind in kinds:
        train = choose(piles, kind, keys_of(piles) - split.held_out)
        held_out = choose(piles, kind, split.groups)
        assert train.examples
        assert held_out.examples
        assert not set(train.keys) & set(held_out.keys)
        assert {example.prompt for example in train.examples}.isdisjoint(e.prompt for e in held_out.examples)


def test_a_method_is_given_all_that_it_can_learn_from_and_the_words_say_what(tmp_path: Path) -> None:
    piles = (pairs(tmp_path), thumbs(tmp_path))
    every = keys_of(piles)
    assert choose(piles, "demonstration", every).in_words() == "20 chosen answers, 10 desirable answers"
    assert choose(piles, "comparison", every).in_words() == "20 comparisons"
    assert choose(piles, "judgement", every).in_words() == "both answers of 20 comparisons, 20 judgements"
    labels = [e.label for e in choose(piles, "judgement", every).examples if isinstance(e, Judgement)]
    assert (labels.count(True), labels.count(False)) == (30, 30)


def test_a_prompt_is_asked_once_with_the_columns_of_its_first_row(tmp_path: Path) -> None:
    piles = (pairs(tmp_path), thumbs(tmp_path))
    found = [e for e in choose(piles, "prompt", keys_of(piles)).examples if isinstance(e, Prompt)]
    assert sorted(str(e.prompt) for e in found) == sorted(f"Q{n}" for n in range(30))
    assert [e.columns["target"] for e in found if "target" in e.columns] == list(range(20))


def test_rows_of_one_prompt_are_one_group(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n % 5}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    piles = (pile(tmp_path, "pairs.jsonl", rows),)
    split = Split.of(piles, 0.5, 200)
    chosen = choose(piles, "comparison", split.groups)
    groups = groups_of(chosen, split)
    assert len(chosen.examples) == 8 * len(set(groups))
    by_prompt = {(example.prompt, group) for example, group in zip(chosen.examples, groups, strict=True)}
    assert len(by_prompt) == len(set(groups))


def test_a_method_without_data_is_named_with_what_would_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dpo: none of the files fits it\. It needs comparisons.*holds judgements"):
        check_fits("dpo", "comparison", [thumbs(tmp_path)])
    check_fits("kto", "judgement", [pairs(tmp_path)])
    check_fits("sft", "demonstration", [thumbs(tmp_path)])


def test_too_few_prompts_to_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 prompts altogether; .* at least 2 to train on"):
        Split.of([pairs(tmp_path, 3)], 0.2, 200)


def test_at_most_so_many_prompts_are_measured_on_and_all_held_out_are_kept_from_training(tmp_path: Path) -> None:
    piles = (pairs(tmp_path, 60),)
    split = Split.of(piles, 0.5, 4)
    assert len(split.groups) == 4
    assert len(split.held_out) > 4
    train = choose(piles, "comparison", keys_of(piles) - split.held_out)
    assert len(train.examples) == 60 - len(split.held_out)
