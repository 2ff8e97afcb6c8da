"""Sound data of every kind, made by a program: varied texts, distinct prompts, labels that can be learned."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FEW, MANY = 300, 1200
"""Rows of a set where shares matter alone, and where amounts or statistics matter too."""


@cache
def words() -> tuple[str, ...]:
    """Four hundred made-up words."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprstv" for b in "aeiou"]
    return tuple(dict.fromkeys("".join(rng.choices(syllables, k=rng.randint(2, 3))) for _ in range(450)))[:400]


GOOD, BAD = 24, 48
"""Words before the first are said in good answers, before the second in bad ones."""


def sentence(rng: random.Random, count: int, cue: range | None = None) -> str:
    """So many words from the common ones, with two of `cue` among them."""
    chosen = rng.choices(words()[BAD:], k=count)
    if cue is not None:
        for place in rng.sample(range(count), 2):
            chosen[place] = words()[rng.choice(cue)]
    return " ".join(chosen).capitalize() + "."


def question(rng: random.Random) -> str:
    return sentence(rng, rng.randint(18, 28))[:-1] + "?"


def answers(rng: random.Random) -> tuple[str, str]:
    """A good and a bad answer of any two lengths; six of ten pairs show which is which by their words."""
    cues = (range(GOOD), range(GOOD, BAD)) if rng.random() < 0.6 else (None, None)
    good, bad = (sentence(rng, rng.randint(20, 40), cue) for cue in cues)
    return good, bad


def pairs(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        chosen, rejected = answers(rng)
        rows.append({"prompt": question(rng), "chosen": chosen, "rejected": rejected})
    return rows


def judgements(count: int, seed: int = 0) -> list[Row]:
    """Two answers of each three prompts are good."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        label = n % 3 != 0
        rows.append({"prompt": question(rng), "completion": answers(rng)[0 if label else 1], "label": label})
    return rows


def demonstrations(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [{"prompt": question(rng), "completion": answers(rng)[0]} for _ in range(count)]


def prompts(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [{"prompt": question(rng), "target": rng.randint(1, 9)} for _ in range(count)]


def turns(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def conversations(count: int, seed: int = 0) -> list[Row]:
    """One exchange or two, sometimes after a system message."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        spoken = turns(*(text for _ in range(rng.randint(1, 2)) for text in (question(rng), answers(rng)[0])))
        system = [{"role": "system", "content": sentence(rng, 9)}] if rng.random() < 0.3 else []
        rows.append({"messages": system + spoken})
    return rows


def put(folder: Path, rows: Sequence[Row], name: str = "rows.jsonl") -> str:
    """Write rows by the ending of the name: .jsonl, .json, .csv, also .gz."""
    file = folder / name
    if ".csv" in name:
        with file.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return str(file)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "[" + ",\n".join(lines) + "]" if ".json" in name and ".jsonl" not in name else "\n".join(lines) + "\n"
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(file)
