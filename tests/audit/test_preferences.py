from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.audit.made import answer, audited, complaints, finding, judgements, pairs, places, text
from truing.audit.noise import estimate


def test_preferences_in_a_circle_are_found_whatever_its_length(tmp_path: Path) -> None:
    rows = pairs()
    a, b, c, d = (f"answer {name} here" for name in "abcd")
    circle = [{"prompt": "which", "chosen": x, "rejected": y} for x, y in ((a, b), (b, c), (c, a), (a, d))]
    both = [{"prompt": "who", "chosen": x, "rejected": y} for x, y in ((a, b), (b, a))]
    elsewhere = [{"prompt": "where", "chosen": b, "rejected": a}]
    found = finding(audited(tmp_path, [*rows, *circle, *both, *elsewhere]), "contradictions")
    assert places(found) == [2401, 2402, 2403, 2405, 2406], "neither the edge that leaves nor another prompt's"
    assert found.level == "ok", "5 of 2,407"


@pytest.mark.parametrize(("conflicts", "level"), [(10, "ok"), (15, "warn"), (70, "strong")])
def test_contradictions_are_graded(conflicts: int, level: str, tmp_path: Path) -> None:
    rows = pairs(2000)
    rows += [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:conflicts]]
    found = audited(tmp_path, rows)
    assert finding(found, "contradictions").level == level
    assert found.facts.contradictions == pytest.approx(2 * conflicts / len(rows))


def test_one_answer_judged_both_ways_is_a_contradiction(tmp_path: Path) -> None:
    rows = judgements()
    rows += [{**row, "label": not row["label"]} for row in rows[:50]]
    found = finding(audited(tmp_path, rows), "contradictions")
    assert (found.level, len(found.rows)) == ("strong", 100)
    assert finding(audited(tmp_path, rows), "duplicates").rows == ()


def test_margins_that_do_not_favour_the_chosen_are_told(tmp_path: Path) -> None:
    rows = [{**row, "margin": 1.5} for row in pairs()]
    assert finding(audited(tmp_path, rows), "margin").level == "ok"
    for place in range(30):
        rows[place]["margin"] = 0 if place % 2 else -1
    found = audited(tmp_path, rows)
    assert (finding(found, "margin").level, places(finding(found, "margin"))) == ("warn", list(range(1, 31)))
    assert found.facts.scored
    assert not audited(tmp_path, pairs()).facts.scored


@pytest.mark.parametrize(("good", "level"), [(1200, "ok"), (150, "ok"), (100, "warn"), (0, "stop")])
def test_labels_out_of_balance_are_graded(good: int, level: str, tmp_path: Path) -> None:
    rows = [row for row in judgements(2800) if row["label"]][:good]
    rows += [row for row in judgements(2800) if not row["label"]][:1200]
    found = finding(audited(tmp_path, rows), "balance")
    assert (found.level, found.figures["desirable"]) == (level, good)
    if good == 150:
        assert found.figures["desirable_weight"] == pytest.approx(8)


def test_one_good_class_can_be_trained_on_by_sft(tmp_path: Path) -> None:
    good = [row for row in judgements(2400) if row["label"]]
    assert "train sft on the same file" in finding(audited(tmp_path, good), "balance").remedy


@pytest.mark.parametrize(("share", "level"), [(0.5, "ok"), (0.65, "warn"), (0.75, "strong"), (0.35, "warn")])
def test_the_longer_answer_winning_is_graded(share: float, level: str, tmp_path: Path) -> None:
    rows = []
    for n, row in enumerate(pairs(2000)):
        short, long = sorted((row["chosen"], row["rejected"]), key=lambda words: len(words.split()))
        long += " end"
        longer = (n % 100) / 100 < share
        rows.append({**row, "chosen": long if longer else short, "rejected": short if longer else long})
    found = audited(tmp_path, rows)
    bias = finding(found, "length_bias")
    assert bias.level == level
    assert bias.figures["share"] == pytest.approx(share)
    assert found.facts.longer_wins is not None
    assert found.facts.longer_wins.low < share < found.facts.longer_wins.high


def test_a_ratio_of_lengths_warns_even_where_the_longer_seldom_wins(tmp_path: Path) -> None:
    rows = pairs()
    rng = random.Random(0)
    for row in rows[:240]:
        row["chosen"] += " " + text(rng, 120)
    found = finding(audited(tmp_path, rows), "length_bias")
    assert found.figures["share"] < 0.6
    assert (found.level, found.figures["ratio"] > 1.25) == ("warn", True)


def test_a_few_pairs_that_differ_by_chance_are_no_bias(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {"prompt": f"p {n}", "chosen": text(rng, 11 if n < 7 else 10), "rejected": text(rng, 10 if n < 7 else 11)}
        for n in range(10)
    ]
    assert finding(audited(tmp_path, rows), "length_bias").level == "ok"


def test_a_word_that_gives_the_chosen_away_is_a_shortcut_and_is_named(tmp_path: Path) -> None:
    rows = pairs()
    for row in rows:
        row["chosen"] += " Certainly!"
    found = finding(audited(tmp_path, rows), "shortcut")
    assert found.level == "strong"
    assert "'certainly'" in found.sentence


def test_labels_by_coin_are_told(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{**row, "chosen": answer(rng, True), "rejected": answer(rng, True)} for row in pairs(2000)]
    found = audited(tmp_path, rows)
    assert complaints(found) == [("shortcut", "warn")]
    assert found.facts.noise is None, "too weak a classifier says so"
    assert "no estimate" in finding(found, "noise").sentence


def test_no_prompt_is_on_both_sides_of_a_fold(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = []
    for n in range(200):
        mark, anti = f"mark{n}", f"anti{n}"  # one prompt's answers share words that say nothing of others'
        for _ in range(6):
            good, bad = text(rng, 20), text(rng, 20)
            rows.append({"prompt": f"prompt {n}", "chosen": f"{good} {mark}", "rejected": f"{bad} {anti}"})
    found = audited(tmp_path, rows)
    assert found.facts.shortcut is not None
    assert found.facts.shortcut.low < 0.5 < found.facts.shortcut.high


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_flipped_labels_are_estimated(rate: float, tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = pairs(6000, doubt=0.0)
    for row in rows:
        if rng.random() < rate:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    found = audited(tmp_path, rows)
    noise = found.facts.noise
    assert noise is not None
    assert noise.low - 0.02 <= rate <= noise.high + 0.01
    assert noise.high - noise.low < 0.15
    told = finding(found, "noise")
    assert told.level == ("warn" if rate >= 0.1 else "ok")
    assert (f"label_smoothing: {noise.value:.2f}" in told.remedy) == (rate >= 0.1)


def test_the_estimate_recovers_the_model_that_it_assumes() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 3, 20_000)
    right = generator.random(len(truth)) < 1 / (1 + np.exp(-np.abs(truth)))
    flipped = generator.random(len(truth)) < 0.15
    found = estimate(np.where(right != flipped, np.abs(truth), -np.abs(truth)))
    assert found.low <= 0.15 <= found.high
    assert found.high - found.low < 0.04


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_known_rate_is_covered_where_margins_err_by_unequal_amounts(rate: float, seed: int) -> None:
    """Errors of standard deviation √(1 / γ), γ from a gamma distribution: a few pairs are sure and wrong."""
    generator = np.random.default_rng(seed)
    truth = generator.uniform(-25, 25, 6000)
    margins = truth + generator.normal(size=6000) / np.sqrt(generator.gamma(1.5, 1 / 1.5, 6000))
    flipped = generator.random(6000) < rate
    found = estimate(margins * np.sign(truth) * np.where(flipped, -1, 1))
    assert found.low <= rate <= found.high
    assert abs(found.value - rate) < 0.02
    assert found.high - found.low < 0.08


def test_margins_without_spread_give_no_false_certainty() -> None:
    found = estimate(np.where(np.arange(1000) < 700, 1.0, -1.0))
    assert found.low < 0.02, "doubt and flips cannot be told apart where all pairs are equally clear"
    assert found.high == pytest.approx(0.3, abs=0.05)
