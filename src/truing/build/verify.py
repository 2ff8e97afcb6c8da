"""`truing verify`: whether a run directory still holds what its run wrote, and whether its recipe leads there again."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truing.build.chain import Place, calibration_of, places
from truing.build.environment import PACKAGES, versions
from truing.build.load_result import is_scorer, open_result, open_scorer
from truing.build.parity import FILE as PARITY
from truing.build.parity import figures_of, served_predictions, tolerance
from truing.build.policy import storage_for
from truing.build.preconditions import complaints_before
from truing.build.result import write_weights
from truing.build.stage import assemble, trainer_of
from truing.core.errors import GuardError, TruingError
from truing.core.trees import Completion, Tree
from truing.data.records import read
from truing.models.folder import model_digest
from truing.recipe.load import load_recipe
from truing.training import checkpoint
from truing.training.manifest import damage, file_digest
from truing.training.progress import Reporter, Silent
from truing.training.run_directory import RunDirectory

UNTIMED = ("seconds", "memory_bytes")
"""Figures of a step that no run repeats."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    good: bool
    text: str

    @property
    def line(self) -> str:
        """It, for a person."""
        return f"{'ok    ' if self.good else 'FAULT '} {self.what}: {self.text}"


def verify_run(path: Path, replay: int | None, reporter: Reporter) -> None:
    """Tell what is found of every stage; raises GuardError at the end where something is not as it should be.

    `replay` trains so many first steps of each stage again, in a temporary folder; None none of them.
    """
    directory = RunDirectory.open(path)
    recipe = load_recipe(path / "recipe.yaml")
    several = len(recipe.stages) > 1
    faults = count = 0
    for place in places(recipe, directory.path):
        for finding in _stage(place, replay):
            count += 1
            faults += not finding.good
            name = f"{place.folder.name}, {finding.what}" if several else finding.what
            reporter.say(Finding(name, finding.good, finding.text).line)
    if several and (path / "final").is_dir():
        finding = _files(path / "final", "result of the chain")
        count, faults = count + 1, faults + (not finding.good)
        reporter.say(finding.line)
    if faults:
        raise GuardError(f"{path}: {faults} of {count} checks failed")
    reporter.say(f"{path}: all {count} checks passed")


def _stage(place: Place, replay: int | None) -> Iterator[Finding]:
    run = RunDirectory(place.folder)
    if not (place.folder / "environment.json").is_file():
        yield Finding("stage", True, "not begun")
        return
    environment = run.read_object("environment.json")
    yield _sure("checkpoints", lambda: _checkpoints(place.folder))
    yield _sure("metrics", lambda: _metrics(run))
    yield _sure("data", lambda: _data(environment))
    yield _sure("start", lambda: _start(place, environment))
    if (place.folder / "final").is_dir():
        yield _sure("result", lambda: _files(place.folder / "final", "result"))
        if (place.folder / PARITY).is_file():
            yield _sure("as served", lambda: _served(place.folder, run.read_json(PARITY)))
    if replay is not None:
        yield _sure("replay", lambda: _replayed(place, run, environment, replay))


def _sure(what: str, look: Callable[[], Finding]) -> Finding:
    """What is found; where even looking fails, that is the finding."""
    try:
        return look()
    except TruingError as failure:
        return Finding(what, False, str(failure))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, OSError) as failure:
        return Finding(what, False, f"a file that the run wrote has been damaged: {failure!r}")


def _checkpoints(folder: Path) -> Finding:
    found = checkpoint.complete(folder / "checkpoints")
    harmed = {each.name: problem for each in found if (problem := damage(each))}
    if harmed:
        return Finding("checkpoints", False, "; ".join(f"{name} is damaged ({why})" for name, why in harmed.items()))
    return Finding("checkpoints", True, f"{len(found)} whole, {', '.join(each.name for each in found) or 'none yet'}")


def _metrics(run: RunDirectory) -> Finding:
    rows = run.rows("metrics.jsonl")
    steps = [row.get("step") for row in rows]
    if steps != list(range(1, len(rows) + 1)):
        return Finding("metrics", False, f"{len(rows)} rows, whose steps are not 1 to {len(rows)}")
    saved = checkpoint.complete(run.path / "checkpoints")
    last = int(saved[-1].name[5:]) if saved else 0
    if last > len(rows):
        return Finding("metrics", False, f"{len(rows)} rows, and a checkpoint after step {last}")
    bad = [row["step"] for row in rows if not isinstance(row.get("loss"), float) or not math.isfinite(row["loss"])]
    if bad:
        return Finding("metrics", False, f"no finite loss in {len(bad)} steps, the first of them step {bad[0]}")
    return Finding("metrics", True, f"{len(rows)} steps without a gap")


def _data(environment: Mapping[str, Any]) -> Finding:
    names = [str(file["name"]) for file in environment["data"]]
    hashes = [file_digest(Path(name)) if Path(name).is_file() else read(name).sha256 for name in names]
    changed = [
        f"{name} has changed"
        for name, now, file in zip(names, hashes, environment["data"], strict=True)
        if now != file["sha256"]
    ]
    return Finding("data", not changed, "; ".join(changed) or f"as it was: {', '.join(names)}")


def _start(place: Place, environment: Mapping[str, Any]) -> Finding:
    storage = storage_for(place.stage.adapter)
    same = place.start.digest(model_digest(place.start.model), storage) == environment["start_sha256"]
    return Finding("start", same, f"{place.start.model} is {'as it was' if same else 'not what the run began with'}")


def _files(folder: Path, what: str) -> Finding:
    problem = damage(folder)
    return Finding(what, problem is None, problem or "every file matches its SHA-256")


def _served(folder: Path, parity: Mapping[str, Any]) -> Finding:
    """Whether the result, loaded anew, gives the figures that it gave when it was written."""
    if parity["complaint"] is not None:
        return Finding("as served", False, str(parity["complaint"]))
    dtype = getattr(torch, parity["dtype"])
    opened = open_scorer(folder, dtype) if is_scorer(folder) else open_result(folder, dtype)
    trees = [_tree(prompt, words) for prompt, words in zip(parity["prompts"], parity["completions"], strict=True)]
    figures = torch.tensor(figures_of(served_predictions(opened.model, trees), trees, scores=opened.model.scores))
    recorded = torch.tensor(parity["figures"])
    largest = float((figures - recorded).abs().max())
    return Finding(
        "as served",
        largest <= tolerance(dtype, recorded),
        f"loaded anew, it differs by {largest:.2g} from what it answered when it was written",
    )


def _tree(prompt: list[int], completion: list[int]) -> Tree:
    words = np.asarray(completion, dtype=np.int32)
    return Tree(np.asarray(prompt, dtype=np.int32), (Completion(words, np.ones(len(words), dtype=np.bool_)),))


def _replayed(place: Place, run: RunDirectory, environment: Mapping[str, Any], most: int) -> Finding:
    """Train the first steps again and compare them, and the weights where the stage is trained to its end."""
    recorded = run.rows("metrics.jsonl")
    steps = min(most, len(recorded))
    threads = torch.get_num_threads()
    torch.set_num_threads(int(environment["threads"]))
    try:
        with tempfile.TemporaryDirectory(prefix="truing-verify-") as folder:
            again, same_weights = _train_again(place, RunDirectory(Path(folder)), steps, len(recorded))
    finally:
        torch.set_num_threads(threads)
    other = _elsewhere(environment)
    for before, now in zip(recorded, again, strict=False):
        odd = [name for name in before.keys() - set(UNTIMED) if before[name] != now.get(name)]
        if odd:
            key = "loss" if "loss" in odd else sorted(odd)[0]
            told = f"step {before['step']} differs: {key} was {before[key]}, now {now.get(key)}{other}"
            return Finding("replay", False, told)
    if len(again) < steps:
        return Finding("replay", False, f"it ended after {len(again)} of {steps} steps{other}")
    if same_weights is None:
        return Finding("replay", True, f"the first {steps} of {len(recorded)} steps are identical")
    told = "identical to an uninterrupted run" if same_weights else f"the same figures, but other weights{other}"
    return Finding("replay", same_weights, f"all {steps} steps, {told}")


def _train_again(
    place: Place, run: RunDirectory, steps: int, recorded: int
) -> tuple[list[dict[str, Any]], bool | None]:
    """The rows of the first steps, and whether the weights at the end are those of the result; None before the end."""
    silent = Silent()
    ready = assemble(place.stage, place.start, calibration_of(place.folder), silent)
    with trainer_of(ready, run, silent, None) as trainer:
        trainer.fit(complaints_before(ready.stage, ready.built, ready.dataset), until=steps)
    final = place.folder / "final"
    if steps < recorded or not final.is_dir():
        return run.rows("metrics.jsonl"), None
    written = run.path / "again"
    written.mkdir()
    write_weights(ready.built, run.path, written)
    names = [file.name for file in final.glob("*.safetensors")]
    same = all(file_digest(final / name) == file_digest(written / name) for name in names)
    return run.rows("metrics.jsonl"), same


def _elsewhere(environment: Mapping[str, Any]) -> str:
    """What of this machine is not as where the run was trained, which changes last digits."""
    then, now = environment["versions"], versions()
    odd = [f"{name} {then.get(name)} then, {now[name]} now" for name in PACKAGES if then.get(name) != now[name]]
    return f" ({'; '.join(odd)}: last digits may differ)" if odd else ""
