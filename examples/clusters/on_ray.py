"""Run a recipe on the nodes of a Ray cluster, one torchrun on each.

ray job submit --working-dir . -- python examples/clusters/on_ray.py \\
    --recipe /shared/recipe.yaml --run /shared/runs/dpo --nodes 2 --gpus 8 -- --set parallel.shard=8

Ray finds the nodes and starts the processes; it knows nothing of the training. Recipe, data and run directory lie on
storage that all nodes see.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parent / "train.sh"
ATTEMPTS = 10
"""How often a run whose node was taken away is taken up again."""


PAUSE = 120
"""Seconds before that: the parts on other nodes save and end first."""


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True, help="of each node")
    parser.add_argument("--cpus", type=int, default=8, help="of each node")
    parser.add_argument("rest", nargs="*", help="what to put behind `truing train`")
    return parser.parse_args()


def environment(asked: argparse.Namespace, head: str, job: str) -> dict[str, str]:
    """What train.sh reads."""
    return {
        "RECIPE": asked.recipe,
        "RUN": asked.run,
        "NODES": str(asked.nodes),
        "GPUS": str(asked.gpus),
        "HEAD": head,
        "JOB": job,
    }


class Node:
    """One node of the placement group, which runs train.sh."""

    def address(self) -> str:
        """Where the others reach it."""
        import ray

        return str(ray.util.get_node_ip_address())

    def train(self, script: str, variables: dict[str, str], rest: list[str]) -> int:
        """The exit code of this node's part; when Ray ends this process, the part gets SIGTERM and saves."""
        command = ["setpriv", "--pdeathsig", "TERM", "bash", "-c", script, "train.sh", *rest]
        return subprocess.run(command, env=os.environ | variables, check=False).returncode


def attempt(asked: argparse.Namespace, job: str) -> list[int]:
    """Start every node's part and wait for all; the exit codes, or an error of Ray's where a node was lost."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": asked.cpus, "GPU": asked.gpus}
    group = ray.util.placement_group([bundle] * asked.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    try:
        nodes = [
            ray.remote(Node)
            .options(
                num_cpus=asked.cpus,
                num_gpus=asked.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            )
            .remote()
            for index in range(asked.nodes)
        ]
        head = ray.get(nodes[0].address.remote())
        variables, script = environment(asked, head, job), TRAIN.read_text(encoding="utf-8")
        codes: list[int] = ray.get([node.train.remote(script, variables, asked.rest) for node in nodes])
        return codes
    finally:
        ray.util.remove_placement_group(group)


def main() -> None:
    """Run until it is done, or wrong."""
    import ray

    asked = arguments()
    ray.init()
    for number in range(ATTEMPTS):
        try:
            codes = attempt(asked, f"truing-{number}")
        except ray.exceptions.RayActorError as lost:
            print(f"a node was lost: {lost}; going on from the last checkpoint", flush=True)  # noqa: T201
            time.sleep(PAUSE)
            continue
        raise SystemExit(next((code for code in codes if code), 0))
    raise SystemExit(f"{ATTEMPTS} times a node was lost")


if __name__ == "__main__":
    main()
