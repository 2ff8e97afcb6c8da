"""Put runs side by side: a table of times and memory, a table of losses, and the ratios that matter."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from sides import WARM_UP, Run

RESULTS = Path(__file__).parent / "results"
GIGABYTE = 1e9


def merged(runs: Sequence[Run]) -> list[Run]:
    """One run for every engine and setting: each step's seconds the median over the rounds, memory the largest."""
    names = list(dict.fromkeys(run.name for run in runs))
    return [_over_rounds([run for run in runs if run.name == name]) for name in names]


def _over_rounds(rounds: Sequence[Run]) -> Run:
    first = rounds[0]
    return Run(
        engine=first.engine,
        setting=first.setting,
        losses=first.losses,
        step_seconds=[median(seconds) for seconds in zip(*(run.step_seconds for run in rounds), strict=True)],
        step_tokens=first.step_tokens,
        peak_bytes=max(run.peak_bytes for run in rounds),
        seconds=median(run.seconds for run in rounds),
        cpu_seconds=median(run.cpu_seconds for run in rounds),
        first_step_seconds=median(run.first_step_seconds for run in rounds),
        versions=first.versions,
    )


def alternate(contestants: Sequence[Callable[[], Run]], rounds: int) -> list[Run]:
    """Run every contestant once a round, forwards and backwards in turn, so that a drift of the machine cancels."""
    runs = []
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else list(reversed(contestants)):
            run = contestant()
            print(f"  round {number + 1}: {run.name}: {run.seconds_per_step:.2f} s a step", flush=True)
            runs.append(run)
    return runs


def speed_table(runs: Sequence[Run]) -> str:
    """Markdown: every setting's median seconds per step, tokens a second, CPU seconds and peak memory."""
    lines = [
        "| | seconds per step | tokens per second | peak RSS | CPU seconds, whole run |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [
            run.name,
            f"{run.seconds_per_step:.2f}",
            f"{run.tokens_per_second:.0f}",
            f"{run.peak_bytes / GIGABYTE:.2f} GB",
            f"{run.cpu_seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fastest(runs: Sequence[Run], engine: str) -> Run | None:
    return min((run for run in runs if run.engine == engine), key=lambda run: run.seconds_per_step, default=None)


def leanest(runs: Sequence[Run], engine: str) -> Run | None:
    return min((run for run in runs if run.engine == engine), key=lambda run: run.peak_bytes, default=None)


def ratio_lines(runs: Sequence[Run]) -> list[str]:
    """Our fastest setting against the rival's fastest and the rival's leanest; empty when a side is missing."""
    ours, quick, lean = fastest(runs, "truing"), fastest(runs, "trl"), leanest(runs, "trl")
    if ours is None or quick is None or lean is None:
        return []
    lines = []
    for kind, rival in (("fastest", quick), ("leanest", lean)):
        pairs = zip(rival.step_seconds[WARM_UP:], ours.step_seconds[WARM_UP:], strict=False)
        speed = median(theirs / mine for theirs, mine in pairs)
        lines.append(
            f"{ours.name} against the rival's {kind} ({rival.name}): {speed:.2f} times the steps per second, "
            f"{ours.peak_bytes / rival.peak_bytes:.0%} of the peak memory"
        )
    return lines


def loss_table(ours: Run, theirs: Run) -> tuple[str, float]:
    """Markdown of both loss curves, and the largest difference between them."""
    lines = ["| step | truing | trl | difference |", "|---|---|---|---|"]
    largest = 0.0
    for step, (mine, other) in enumerate(zip(ours.losses, theirs.losses, strict=True), start=1):
        largest = max(largest, abs(mine - other))
        lines.append(f"| {step} | {mine:.7f} | {other:.7f} | {mine - other:+.1e} |")
    return "\n".join(lines), largest


def machine() -> dict[str, Any]:
    """Where and when this was measured; the load says whether the machine was otherwise idle."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _told(value: Any) -> Any:
    """A setting as others may read it: of a path the last part, of a command line its program and what follows."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and "/" in value:
        return " ".join(Path(part).name for part in value.split())
    return [_told(part) for part in value] if isinstance(value, list) else value


def write_results(name: str, title: str, sections: Sequence[str], runs: Sequence[Run], settings: Any) -> None:
    """Print the tables and write `results/<name>.json` and `results/<name>.md`."""
    told = {key: _told(value) for key, value in settings.items()}
    _write(name, title, sections, {"settings": told, "runs": [asdict(run) for run in runs]})


def write_table(name: str, title: str, sections: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write the same two files for a benchmark whose rows are no runs of two sides."""
    _write(name, title, sections, {"rows": list(rows)})


def _write(name: str, title: str, sections: Sequence[str], record: dict[str, Any]) -> None:
    where = machine()
    text = "\n\n".join([f"# {title}", f"{where['processor']}, {where['cores']} cores, {where['time']}.", *sections])
    print("\n" + text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps({"machine": where, **record}, indent=1, default=str)
    (RESULTS / f"{name}.json").write_text(content + "\n", encoding="utf-8")
