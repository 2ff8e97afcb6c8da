"""Lets atheris, which watches which lines are reached, choose how files are harmed: every reader in turn.

    python -m tests.hostile.coverage --minutes 2

Ends with 1 where a reader breaks the law; what it was given lies in `crash-…` then, as libFuzzer leaves it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Give each reader a process of its own, since libFuzzer ends the one it runs in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--reader", type=int, help="only the reader of this number, in this process")
    asked = parser.parse_args()
    if asked.reader is not None:
        _watch(asked.reader, round(60 * asked.minutes))
    from tests.hostile.readers import readers

    broken = []
    for number, reader in enumerate(readers()):
        command = [sys.executable, "-m", "tests.hostile.coverage", "--reader", str(number)]
        done = subprocess.run([*command, "--minutes", str(asked.minutes)], check=False, capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith(("#", "Done"))]
        print(f"{reader.name}: {'sound' if done.returncode == 0 else 'BROKEN'}; {' '.join(lines[-1:])}", flush=True)
        if done.returncode:
            broken.append(reader.name)
            print(done.stderr[-4000:], file=sys.stderr)
    sys.exit(1 if broken else 0)


def _watch(number: int, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["truing", "yaml", "jinja2", "json", "csv"]):
        from tests.hostile.law import hold
        from tests.hostile.readers import readers
    reader = readers()[number]
    with tempfile.TemporaryDirectory(prefix="truing-fuzz-") as folder:

        def one(data: bytes) -> None:
            choices = atheris.FuzzedDataProvider(data)
            hold(reader, lambda below: choices.ConsumeIntInRange(0, below - 1), Path(folder))

        limits = ["-max_len=256", "-len_control=0", f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=6000"]
        atheris.Setup([sys.argv[0], *limits], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
