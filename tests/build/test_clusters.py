"""What the launch examples say is what the command line knows; their shell part runs with stand-ins for schedulers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from truing.cli.main import cli

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "examples" / "clusters"
PAGE = ROOT / "docs" / "clusters.md"

TORCHRUN = """#!/bin/bash
echo "$@" >> "$LOG"
if [ -n "${SLOW:-}" ]; then exec bash -c 'sleep 60 & wait'; fi
"""

SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
pids=()
for node in 0 1; do "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
"""

SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "requeue $2" >> "$LOG"; else echo first; echo second; fi
"""


def documents() -> list[tuple[str, dict]]:
    return [(file.name, part) for file in CLUSTERS.glob("*.yaml") for part in yaml.safe_load_all(file.read_text())]


def test_every_example_parses_and_names_files_that_are_there() -> None:
    kinds = {(name, part.get("kind")) for name, part in documents()}
    kubernetes = {("kubernetes.yaml", "Service"), ("kubernetes.yaml", "Job"), ("ray-job.yaml", "RayJob")}
    assert kinds == kubernetes | {("skypilot.yaml", None)}
    for script in (*CLUSTERS.glob("*.sh"), *CLUSTERS.glob("*.sbatch")):
        subprocess.run(["bash", "-n", script], check=True)
    compile((CLUSTERS / "on_ray.py").read_text(), "on_ray.py", "exec")
    everything = "".join(file.read_text() for file in (*CLUSTERS.iterdir(), PAGE) if file.is_file())
    for name in re.findall(r"examples/clusters/([\w-]+\.\w+)", everything):
        assert (CLUSTERS / name).is_file(), name


def test_commands_and_options_of_the_examples_exist() -> None:
    text = "\n".join(file.read_text() for file in (*CLUSTERS.iterdir(), PAGE) if file.is_file())
    used = re.findall(r"truing (train|resume|plan)((?:[ \"$@A-Z…/]|--[\w-]+(?:=[\w.]+)?|\d|[a-z]\w+=?)*)", text)
    assert {"train", "resume", "plan"} == {command for command, _ in used}
    for command, rest in used:
        known = {option for parameter in cli.commands[command].params for option in parameter.opts}
        # how many processes a command starts by itself is an option of the launcher
        assert set(re.findall(r"--[a-z-]+", rest)) <= known | {"--nproc"}, (command, rest)


def test_kubernetes_gives_train_sh_everything_that_it_reads() -> None:
    job = next(part for name, part in documents() if name == "kubernetes.yaml" and part["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {each["name"] for each in container["env"]}
    script = (CLUSTERS / "train.sh").read_text()
    assert set(re.findall(r"\$\{?(RECIPE|RUN|NODES|GPUS|HEAD|JOB)\b", script)) <= given


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which two nodes are two processes of this machine, and torchrun only says what it was told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "GPUS": "8"}
    own = {"RECIPE": "/shared/recipe.yaml", "RUN": str(tmp_path / "run"), "LOG": str(tmp_path / "log")}
    return {**os.environ, **slurm, **own, "CLUSTERS": str(CLUSTERS), "PATH": f"{tools}:{os.environ['PATH']}"}


def said(cluster: dict[str, str]) -> list[str]:
    return Path(cluster["LOG"]).read_text(encoding="utf-8").splitlines()


def test_slurm_starts_each_node_and_goes_on_with_a_run_that_is_there(cluster: dict[str, str]) -> None:
    command = ["bash", str(CLUSTERS / "slurm.sbatch"), "--set", "parallel.shard=8"]
    subprocess.run(command, env=cluster, check=True)
    meeting = "--rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id 7 -m truing"
    start = f"--nnodes 2 --nproc-per-node 8 --max-restarts 0 {meeting}"
    train = f"{start} train /shared/recipe.yaml --output {cluster['RUN']} --set parallel.shard=8"
    assert said(cluster) == [train, train]
    Path(cluster["RUN"]).mkdir()
    (Path(cluster["RUN"]) / "recipe.yaml").touch()
    subprocess.run(command, env=cluster, check=True)
    assert said(cluster)[2:] == [f"{start} resume {cluster['RUN']}"] * 2


def test_slurm_requeues_what_sigterm_has_stopped(cluster: dict[str, str]) -> None:
    job = subprocess.Popen(["bash", str(CLUSTERS / "slurm.sbatch")], env=cluster | {"SLOW": "1"})
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    until = time.monotonic() + 20
    while time.monotonic() < until and not (Path(cluster["LOG"]).is_file() and len(said(cluster)) == 2):
        time.sleep(0.05)
    time.sleep(0.5)
    (step,) = (int(pid) for pid in children.read_text().split())
    os.kill(step, signal.SIGTERM)  # as Slurm does to the steps of a job that has to go
    assert job.wait(timeout=20) == 143
    assert said(cluster)[-1] == "requeue 7"
