"""Sound sets of rows of every kind, made of random words, to plant faults in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from truing.audit.audit import Audit, audit
from truing.audit.finding import Finding

Row = dict[str, Any]

SYLLABLES = ("ka", "to", "mi", "ren", "sol", "vi", "dan", "ur", "pe", "lo", "ash", "in", "ter", "or", "al", "ne")
VOCABULARY = tuple(first + second + third for first in SYLLABLES for second in SYLLABLES for third in ("", "n", "sh"))
GOOD, POOR, COMMON = VOCABULARY[:30], VOCABULARY[30:60], VOCABULARY[60:]
"""Words of better answers, of worse ones, and of all."""


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(COMMON, k=words))


def prompts(count: int, seed: int = 0) -> list[str]:
    """Different prompts."""
    rng = random.Random(f"prompts/{seed}")
    return [text(rng, rng.randint(6, 20)) for _ in range(count)]


def answer(rng: random.Random, good: bool) -> str:
    """An answer in which better words are likelier where it is good; as long either way."""
    words = text(rng, rng.randint(15, 40)).split()
    for _ in range(4):
        place = rng.randrange(len(words))
        words[place] = rng.choice(GOOD if (rng.random() < 0.8) == good else POOR)
    return " ".join(words)


def demonstrations(count: int = 1200, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [{"prompt": asked, "completion": answer(rng, True)} for asked in prompts(count, seed)]


def pairs(count: int = 2400, seed: int = 0, doubt: float = 0.2) -> list[Row]:
    """Pairs whose difference is in doubt in a share of them: both answers are then of one make."""
    rng = random.Random(seed)
    rows = []
    for asked in prompts(count, seed):
        unclear = rng.random() < doubt
        rows.append({"prompt": asked, "chosen": answer(rng, True), "rejected": answer(rng, unclear)})
    return rows


def judgements(count: int = 1200, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {"prompt": asked, "completion": answer(rng, n % 2 == 0), "label": n % 2 == 0}
        for n, asked in enumerate(prompts(count, seed))
    ]


def conversations(count: int = 1200, seed: int = 0) -> list[Row]:
    """Messages, every third with two turns."""
    rng = random.Random(seed)
    rows = []
    for n, asked in enumerate(prompts(count, seed)):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer(rng, True)}]
        if n % 3 == 0:
            turns += [{"role": "user", "content": text(rng, 8)}, {"role": "assistant", "content": answer(rng, True)}]
        rows.append({"messages": turns})
    return rows


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def audited(folder: Path, rows: Iterable[Mapping[str, Any]], **settings: Any) -> Audit:
    """The audit of rows written to a file."""
    return audit([write(folder / "rows.jsonl", rows)], **settings)


def finding(found: Audit, check: str) -> Finding:
    """The finding of a check, of which there is exactly one."""
    (one,) = [each for each in found.findings if each.check == check]
    return one


def complaints(found: Audit) -> list[tuple[str, str]]:
    """Checks that found something, with their levels."""
    return [(each.check, each.level) for each in found.findings if each.level != "ok"]


def places(found: Finding) -> list[int]:
    """Row numbers that a finding names."""
    return [origin.row for origin in found.rows]
