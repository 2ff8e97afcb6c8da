"""Reads so many unsound files with every reader, and says how many were refused; ends with 1 where the law is broken.

    python -m tests.hostile.fuzz --cases 100000

Each case has a number, from which it is made again: `--reader NAME --first NUMBER --cases 1`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.hostile.law import Reader, bound_memory, hold
from tests.hostile.readers import readers


def main() -> None:
    """Read, tell, and end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--reader", action="append", help="only the readers whose names begin so; repeatable")
    asked = parser.parse_args()
    chosen = [one for one in readers() if any(one.name.startswith(name) for name in asked.reader or [""])]
    bound_memory()
    print("| reader | cases | refused | broken | seconds |\n|---|---|---|---|---|", flush=True)
    broken = sum(fuzz(reader, asked.first, max(1, round(asked.cases * reader.share))) for reader in chosen)
    sys.exit(1 if broken else 0)


def fuzz(reader: Reader, first: int, cases: int) -> int:
    """Read so many cases; print a row of the table, and each kind of breach once. Returns the breaches."""
    began, refused, broken = time.monotonic(), 0, 0
    known: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="truing-fuzz-") as folder:
        for number in range(first, first + cases):
            try:
                refused += hold(reader, random.Random(number).randrange, Path(folder))
            except KeyboardInterrupt:
                raise
            except BaseException as breach:  # noqa: BLE001 - whatever it is, it should not be
                broken += 1
                told = traceback.format_exception(breach)
                place = "".join(told[-2:])
                if place not in known:
                    known.add(place)
                    print(f"{reader.name}, case {number}:\n{''.join(told[-12:])}", file=sys.stderr, flush=True)
    print(f"| {reader.name} | {cases:,} | {refused:,} | {broken} | {time.monotonic() - began:.0f} |", flush=True)
    return broken


if __name__ == "__main__":
    main()
