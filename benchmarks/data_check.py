"""How long `truing data check` takes over many pairs, with how much memory, and how well it tells flipped labels.

python benchmarks/data_check.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from truing.audit.audit import Audit, audit
from truing.audit.finding import percent
from truing.training.progress import peak_memory_bytes
from truing.world.records import WorldSettings, write_file

HERE = Path(__file__).parent
WORDS = 30_000
SYLLABLES = ("ka", "to", "mi", "ren", "sol", "vi", "dan", "ur", "pe", "lo", "ash", "in", "ter", "or", "al", "ne")
TELLING, LIKELY = 5, 0.6  # words that better answers end with, and how often they do
RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--model", help="count tokens too, with this model's tokenizer")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in pairs(chosen.pairs))
        size = file.stat().st_size
        phases, found = timed(file, chosen.model)
        memory = peak_memory_bytes()
        estimates = [noise(Path(folder), rate) for rate in RATES]
    report = "\n".join(
        [
            "# Checking data",
            "",
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; `python "
            f"benchmarks/data_check.py`.",
            "",
            f"{chosen.pairs:,} pairs of answers of about 220 words each, {size / 1e6:.0f} MB: "
            f"**{sum(phases.values()):.1f} s**, at most {memory / 1e9:.2f} GB of memory ({found.verdict}).",
            "",
            "| | seconds |",
            "|---|---|",
            *(f"| {name} | {seconds:.1f} |" for name, seconds in phases.items()),
            "",
            "Labels flipped at a known rate in 6,000 pairs of the tour's world, read without error, and the estimate:",
            "",
            "| flipped | estimate | 95 % interval |",
            "|---|---|---|",
            *estimates,
            "",
        ]
    )
    print(report)
    (HERE / "results" / "data_check.md").write_text(report, encoding="utf-8")


def pairs(count: int) -> Iterator[dict[str, str]]:
    """Prompts of about 33 and answers of about 227 words whose frequencies follow Zipf's law."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(SYLLABLES, generator.integers(1, 5))) for _ in range(WORDS)])
    chances = 1 / np.arange(1, WORDS + 1)
    chances /= chances.sum()
    for _ in range(count):
        sizes = np.clip(generator.lognormal(np.log([30, 200, 200]), 0.5), 5, 2000).astype(int)
        drawn = words[generator.choice(WORDS, sizes.sum(), p=chances)]
        prompt, better, worse = (" ".join(part) for part in np.split(drawn, sizes.cumsum()[:-1]))
        ending = " ".join(words[WORDS // 2 : WORDS // 2 + TELLING]) if generator.random() < LIKELY else ""
        yield {"prompt": prompt, "chosen": f"{better} {ending}.", "rejected": f"{worse}."}


def timed(file: Path, model: str | None) -> tuple[dict[str, float], Audit]:
    """Seconds by what was being done, and the audit."""
    phases: dict[str, float] = {}
    last = time.perf_counter()

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        name = what if what in phases else f"before {what}"  # what was done since the phase before
        phases[name] = phases.get(name, 0.0) + now - last
        phases.setdefault(what, 0.0)
        last = now

    found = audit([str(file)], model=model, template="plain" if model else None, on_progress=on_progress)
    phases["after"] = time.perf_counter() - last
    names = {
        "before words": "reading the file",
        "before repeats": "control characters, encodings, markup; exact repeats",
        "before word classifier": "near-repeats, contradictions",
        "after": "lengths and facts",
    }
    return {names.get(name, name): seconds for name, seconds in phases.items()}, found


def noise(folder: Path, rate: float) -> str:
    settings = WorldSettings(pairs=6000, flip_rate=rate, temperature=0.0)
    found = audit([str(write_file(folder / str(rate), "pairs", settings))]).facts.noise
    told = (
        "none: the classifier is too weak | "
        if found is None
        else f"{percent(found.value)} | {percent(found.low)} to {percent(found.high)}"
    )
    return f"| {percent(rate)} | {told} |"


if __name__ == "__main__":
    main()
