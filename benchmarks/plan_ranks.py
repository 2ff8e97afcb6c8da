"""Planned seconds of a step on 1, 2 and 4 processes beside real ones, on this CPU through gloo.

python benchmarks/plan_ranks.py

Rates are those that one process reached, so that only what several add is foretold: a link as fast as a plain
all-reduce of gloo, timed first, and nothing hidden, for processes on a CPU compute and send with the same cores. Each
process has as many threads whatever their number. Run it on a quiet machine with a core for each.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

import comparison
import plan_cpu
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import read_architecture
from truing.planner.cluster import Cluster
from truing.planner.cost import Cost, cost_of
from truing.planner.machine import Rates, this_cpu
from truing.planner.methods import METHODS
from truing.planner.setting import Setting, Work, even_row, packed
from truing.planner.sharding import Layout, traffic_of

WORLDS = (1, 2, 4)
STEPS, WARM = 7, 2
MESSAGE = 2**24
"""Numbers of the message whose sum is timed."""

ROWS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds of a step."""

    name: str
    world: int
    planned: float
    real: float


def timed_link(world: int) -> float:
    """Bytes a second each way of gloo's all-reduce among so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_sum, (world, folder), nprocs=world)
        seconds = float((Path(folder) / "seconds").read_text(encoding="ascii"))
    return 2 * 4 * MESSAGE * (world - 1) / world / seconds


def _sum(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    message, times = torch.ones(MESSAGE), []
    for _ in range(6):
        start = time.perf_counter()
        dist.all_reduce(message)
        times.append(time.perf_counter() - start)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(statistics.median(times[1:])), encoding="ascii")
    dist.destroy_process_group()


def cells() -> list[plan_cpu.Cell]:
    return [
        plan_cpu.Cell(method, adapter, 256, 4_096, False, tokens=512)
        for method in ("sft", "dpo")
        for adapter in ("none", "lora")
    ]


def step_seconds(cell: plan_cpu.Cell, work: Path, command: Sequence[str], world: int, shard: int) -> float:
    recipe = plan_cpu.recipe(cell, work) | {"optim": {"max_steps": STEPS}}
    recipe["batch"] = {"examples": ROWS, "micro_tokens": cell.tokens}
    recipe["parallel"] = {"shard": shard}
    file, run = work / f"recipe-{world}-{shard}.yaml", work / f"run-{world}-{shard}"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    words = [*command, "train", str(file), "--output", str(run), *(["--nproc", str(world)] if world > 1 else [])]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(row["seconds"] for row in rows[WARM:])


def dealt(cell: plan_cpu.Cell, model: Path, world: int, rates: Rates) -> tuple[Setting, Work, Cost]:
    """What the busiest of so many processes computes in a step."""
    method = METHODS[cell.method]
    adapter = AdapterSettings() if cell.adapter == "lora" else None
    setting = Setting(cell.method, replace(method, reference=False), adapter, "fp32", "cpu", micro_tokens=cell.tokens)
    row = even_row(method, cell.length, 64, 1)
    work = Work.of_steps([packed([row] * -(-ROWS // world), cell.tokens)], 1)
    return setting, work, cost_of(read_architecture(model), setting, work, rates)


def planned(cell: plan_cpu.Cell, model: Path, world: int, shard: int, link: float, alone: float) -> float:
    """Seconds of a step, from what one process took for the whole of it."""
    unit = Rates(1.0, 1.0)
    _, _, whole = dealt(cell, model, 1, unit)
    rates = Rates(whole.step / alone, whole.step / alone)
    setting, work, cost = dealt(cell, model, world, rates)
    assert cost.seconds is not None
    machine = replace(this_cpu(), rates=rates)
    cluster = Cluster(machine, 1, world, link, link)
    traffic = traffic_of(read_architecture(model), setting, Layout(world // shard, shard), cluster, cost, work)
    return cost.seconds + traffic.waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truing", default=f"{sys.executable} -m truing")
    parser.add_argument("--worlds", type=int, nargs="*", default=list(WORLDS))
    chosen = parser.parse_args()
    links = {world: timed_link(world) for world in chosen.worlds if world > 1}
    said = [f"{world} processes reach {link / 1e9:.2f} GB/s each way" for world, link in links.items()]
    print("; ".join(said), flush=True)
    found = []
    for cell in cells():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            plan_cpu.write_model(work / "model", cell)
            plan_cpu.write_rows(work / "rows.jsonl", cell)
            command = shlex.split(chosen.truing)
            alone = step_seconds(cell, work, command, 1, 1)
            for world, link in links.items():
                for shard in (1, world):
                    name = f"{cell.method} {cell.adapter}, {world} processes, " + (
                        "copies" if shard == 1 else "one copy"
                    )
                    foretold = planned(cell, work / "model", world, shard, link, alone)
                    found.append(Found(name, world, foretold, step_seconds(cell, work, command, world, shard)))
                    print(f"{found[-1].planned:7.2f} {found[-1].real:7.2f} s  {name}", flush=True)
    ratios = [one.planned / one.real for one in found]
    verdict = (
        f"{len(found)} runs: planned over real seconds of a step {statistics.median(ratios):.2f} in the median, "
        f"{min(ratios):.2f} to {max(ratios):.2f}. {'; '.join(said)}."
    )
    lines = ["| run | planned | real | ratio |", "|---|---|---|---|"]
    lines += [
        f"| {one.name} | {one.planned:.2f} s | {one.real:.2f} s | {one.planned / one.real:.2f} |" for one in found
    ]
    print(verdict)
    rows = [asdict(one) for one in found]
    comparison.write_table("plan_ranks", "Planned time of several processes", [verdict, "\n".join(lines)], rows)


if __name__ == "__main__":
    main()
