"""Predicted memory beside the most that torch's allocator has given out in real runs on a GPU.

python benchmarks/plan_gpu.py

The grid and the models are those of plan_cpu.py, made larger. What the context of the driver takes, and what the
allocator keeps beside what it has given out, is left out on both sides; `nvidia-smi` shows them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from pathlib import Path

import torch

import comparison
import plan_cpu

SHAPE = (1024, 2816, 16, 16, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truing", default=f"{sys.executable} -m truing")
    parser.add_argument("--every", type=int, default=1, help="run each so-manieth cell of the grid alone")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; plan_cpu.py does the same on a CPU")
    plan_cpu.SHAPE, plan_cpu.DEVICE = SHAPE, "cuda"
    found = []
    larger_cells = (dataclasses.replace(cell, dtype="bf16", tokens=8192) for cell in plan_cpu.cells())
    for larger in list(dict.fromkeys(larger_cells))[:: chosen.every]:  # those that were bf16 already come once
        with tempfile.TemporaryDirectory() as work:
            one = plan_cpu.measure(larger, Path(work), shlex.split(chosen.truing))
        terms = {name: value for name, value in one.terms.items() if name != "process"}
        found.append(dataclasses.replace(one, predicted=sum(terms.values()), terms=terms))
        print(f"{found[-1].error:+7.1%}  {larger.name}", flush=True)
    rows = [json.loads(json.dumps(dataclasses.asdict(one), default=str)) for one in found]
    sections = [torch.cuda.get_device_name(), plan_cpu.verdict(found), plan_cpu.table(found)]
    comparison.write_table("plan_gpu", "Planned memory beside measured, on a GPU", sections, rows)


if __name__ == "__main__":
    main()
