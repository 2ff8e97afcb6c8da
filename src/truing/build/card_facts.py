"""What a model card says of a run, gathered from the run itself; what is not known stays out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.build.facts import resolved
from truing.build.policy import Start
from truing.data.templates import Template
from truing.objectives.base import Objective
from truing.recipe.load import load_recipe
from truing.recipe.schema import Stage
from truing.training.judge_signs import START
from truing.training.run_directory import RunDirectory
from truing.training.trainer import RESTORED

if TYPE_CHECKING:
    from truing.build.stage import Assembled

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")


@dataclass(frozen=True, slots=True)
class Earlier:
    """A stage before this one."""

    method: str
    files: tuple[Mapping[str, Any], ...]
    """As data.json has them."""
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class CardFacts:
    """A trained stage as its model card tells it."""

    stage: Stage
    """With everything written out."""
    objective: Objective
    adapter: bool
    """Whether the result is an adapter, and not a whole model."""
    base: str
    """The model that an adapter is for; of a whole model, the one that the first stage began with, as named there."""
    merged: bool
    """Whether an adapter is for a base that an earlier adapter was merged into."""
    model_sha256: str
    """Of the weights and configuration that this stage loaded."""
    earlier: tuple[Earlier, ...]
    data: Mapping[str, Any]
    """data.json."""
    environment: Mapping[str, Any]
    """environment.json."""
    metrics: tuple[Mapping[str, Any], ...]
    """metrics.jsonl."""
    evaluated_rows: int
    """Held-out rows that were measured on."""
    template: Template
    end_tokens: tuple[str, ...]

    @property
    def packed(self) -> bool:
        """Whether an adapter was trained over a 4-bit base."""
        return self.stage.adapter is not None and self.stage.adapter.base is not None

    @property
    def restored_step(self) -> int | None:
        """The step whose state is the result, where a guard went back to it."""
        return self.metrics[-1].get(RESTORED)

    @property
    def measured(self) -> Mapping[str, Any]:
        """The figures of the result."""
        step = self.restored_step
        if step == 0:
            return {name.removeprefix(START): v for name, v in self.metrics[0].items() if name.startswith(START)}
        return self.metrics[-1] if step is None else next(row for row in self.metrics if row["step"] == step)

    @property
    def scores(self) -> bool:
        """Whether it is a reward model."""
        return self.objective.reads == "scores"


def gather(ready: Assembled, run: RunDirectory) -> CardFacts:
    """Read the facts of a stage that has been trained."""
    built, stage = ready.built, resolved(ready)
    tokenizer = built.loaded.tokenizer
    return CardFacts(
        stage=stage,
        objective=ready.objective,
        adapter=ready.lora,
        base=built.start.model if ready.lora else _first_model(built.start),
        merged=built.merged_start,
        model_sha256=built.loaded.digest,
        earlier=_before(built.start),
        data=run.read_object("data.json"),
        environment=run.read_object("environment.json"),
        metrics=tuple(run.rows("metrics.jsonl")),
        evaluated_rows=min(len(ready.dataset.held_out), stage.evaluation.limit),
        template=ready.dataset.template,
        end_tokens=tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(built.loaded.end_tokens)),
    )


def hub_id(name: str) -> str | None:
    """The hub id that a model's or data set's name is, or that a file of the hub's cache belongs to.

    >>> hub_id("org/name"), hub_id("/home/me/model")
    ('org/name', None)
    >>> hub_id("/cache/models--org--name/snapshots/abc")
    'org/name'
    """
    cached = _HUB_CACHE.search(f"{name}/")
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    return name if _HUB_ID.fullmatch(name) and not _exists(Path(name)) else None


def public_name(text: str) -> str:
    """A path without the folders above it, which are nobody else's business; any other text as it is."""
    cached = hub_id(text)
    if cached is not None:
        return cached
    path, colon, function = text.rpartition(".py:")
    place = Path(f"{path}.py" if colon else text)
    if not place.is_absolute() or "\n" in text or not _exists(place):
        return text
    name = f"{place.parent.name}/{place.name}" if place.name in ("final", "base") else place.name
    return f"{name}:{function}" if colon else name


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # a text that is no name
        return False


def _run_of(start: Start) -> tuple[Path, Stage] | None:
    """The run directory that a start is the result of, and its stage; None where it is none, or is gone."""
    folder = start.adapter or Path(start.model)
    run = folder.parent
    if folder.name != "final" or not (run / "recipe.yaml").is_file():
        return None
    stages = load_recipe(run / "recipe.yaml").stages
    last = run / f"{len(stages)}-{stages[-1].name}"
    return (last if last.is_dir() else run), stages[-1]


def _start_of(stage: Stage) -> Start:
    adapter = stage.adapter.start if stage.adapter is not None else None
    return Start(str(stage.model), Path(adapter) if adapter is not None else None)


def _before(start: Start) -> tuple[Earlier, ...]:
    """The stages that led to a start, the oldest first."""
    found = _run_of(start)
    if found is None:
        return ()
    run, stage = found
    return (*_before(_start_of(stage)), Earlier(str(stage.objective["use"]), _files(run), _steps(run)))


def _first_model(start: Start) -> str:
    found = _run_of(start)
    return start.model if found is None or found[1].model is None else _first_model(_start_of(found[1]))


def _files(run: Path) -> tuple[Mapping[str, Any], ...]:
    file = run / "data.json"
    found: Sequence[Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["files"] if file.is_file() else ()
    return tuple(found)


def _steps(run: Path) -> int:
    rows = RunDirectory(run).rows("metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0
