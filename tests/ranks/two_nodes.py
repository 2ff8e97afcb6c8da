"""Two machines in one: network namespaces joined by a cable, torchrun in each; one is killed and comes back.

Run by hand: `python -m tests.ranks.two_nodes FOLDER`. It needs the right to make namespaces, as root has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.build.runs import metrics
from tests.ranks.recipes import furthest, recipe, weights_apart, write_ground
from truing.build.chain import run
from truing.recipe.load import recipe_from
from truing.training.progress import Silent

NODES = ("truing-a", "truing-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
STEPS = 30
PATIENCE = 300
"""Seconds."""
AWAY = 25
"""Seconds that the machine is away: torchrun's rendezvous counts it as there for 15."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the run on two machines compares with the run on one."""

    steps: int
    figures_apart: float
    weights_apart: float
    restarted_at: int
    """The step that had been made when one machine was killed."""


def permitted() -> bool:
    """Whether network namespaces can be made here."""
    try:
        made = subprocess.run(["ip", "netns", "add", "truing-try"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    subprocess.run(["ip", "netns", "delete", "truing-try"], capture_output=True, check=False)
    return made.returncode == 0


@contextmanager
def cable() -> Iterator[None]:
    """Two namespaces with an interface each, `eth0`, that lead to each other."""
    _ip("link", "add", "truing0", "type", "veth", "peer", "name", "truing1")
    try:
        for node, address, end in zip(NODES, ADDRESSES, ("truing0", "truing1"), strict=True):
            _ip("netns", "add", node)
            _ip("link", "set", end, "netns", node)
            _inside(node, "ip", "link", "set", end, "name", "eth0")
            _inside(node, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _inside(node, "ip", "link", "set", "eth0", "up")
            _inside(node, "ip", "link", "set", "lo", "up")
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", node], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", "truing0"], capture_output=True, check=False)


def train_on_two(folder: Path) -> Outcome:
    """Train on two machines, kill one in the middle and start it again; compare with one process."""
    values = recipe(write_ground(folder), "dpo", lora=True, optim={"lr": 1e-3, "max_steps": STEPS})
    file, output = folder / "recipe.yaml", folder / "two"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    run(recipe_from(values), folder / "one", Silent())
    with cable():
        first, second = (_torchrun(node, file, output) for node in NODES)
        try:
            made = _wait_for_steps(output, 5)
            # SIGKILL to its session takes the launcher; its rank is in a session of its own.
            for process in (second.pid, *_below(second.pid)):
                os.kill(process, 9)
            second.wait()
            time.sleep(AWAY)
            second = _torchrun(NODES[1], file, output)
            codes = [process.wait(PATIENCE) for process in (first, second)]
        finally:
            for process in (first, second):
                process.kill()
    if any(codes):
        raise SystemExit(f"the launchers ended with {codes}; see {folder}/*.log")
    rows = metrics(output)
    return Outcome(len(rows), furthest(folder / "one", output)[0], weights_apart(folder / "one", output), made)


def _torchrun(node: str, recipe_file: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [
        *("ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-id", "truing"),
        *("--rdzv-conf", f"is_host={int(node == NODES[0])},read_timeout=60"),
        *("--local-addr", ADDRESSES[NODES.index(node)]),
        *("-m", "truing", "train", str(recipe_file), "--output", str(output)),
    ]
    # Without the last one torch 2.13 does not tell a machine that joins later where the others meet.
    own = {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **own}
    with (output.parent / f"{node}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _wait_for_steps(output: Path, count: int) -> int:
    ends = time.monotonic() + PATIENCE
    while not ((output / "metrics.jsonl").is_file() and len(metrics(output)) >= count):
        if time.monotonic() > ends:
            raise SystemExit(f"no step was made; see {output.parent}/*.log")
        time.sleep(0.1)
    return len(metrics(output))


def _below(process: int) -> list[int]:
    """Its children, theirs, and so on."""
    own = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [each for child in own for each in (child, *_below(child))]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _inside(node: str, *command: str) -> None:
    _ip("netns", "exec", node, *command)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    print(train_on_two(place))
