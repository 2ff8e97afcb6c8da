"""Reads run directories, whole or damaged, and finds them below a folder."""

from __future__ import annotations

import fcntl
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from truing.core.errors import InputError, RunError
from truing.core.files import parse_json
from truing.core.settings import parse
from truing.recipe.yaml_file import NO_YAML, is_deep
from truing.training.figures import Row, number, step_of
from truing.training.guard_settings import LimitSettings
from truing.training.signs import Facts

State = Literal["finished", "running", "stopped"]
RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run directory says; a part that is missing or damaged is empty, and a note tells."""

    path: Path
    name: str
    state: State
    stage: Mapping[str, Any]
    """The one stage of its recipe."""
    recipe_text: str
    rows: tuple[Row, ...]
    """Of metrics.jsonl, in the order of their steps."""
    metrics: frozenset[str]
    """The figures of which there is at least one finite value."""
    samples: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    """What guards saw and did while it trained."""
    plan: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    forgetting: Mapping[str, Any]
    parity: Mapping[str, Any]
    changed: float
    """When its figures were last written, in seconds since 1970."""
    notes: tuple[str, ...]

    @property
    def objective(self) -> Mapping[str, Any]:
        return mapping(self.stage.get("objective"))

    @property
    def method(self) -> str:
        return str(self.objective.get("use", "unknown"))

    @property
    def adapter(self) -> str:
        """Such as `lora 16`, or `none` for full weights."""
        adapter = mapping(self.stage.get("adapter"))
        return f"{adapter.get('use', 'lora')} {adapter.get('rank', '?')}" if adapter else "none"

    @property
    def model(self) -> str:
        return str(self.stage.get("model") or "unknown")

    @property
    def steps(self) -> int:
        """Steps made."""
        return (step_of(self.rows[-1]) or 0) if self.rows else 0

    @property
    def planned_steps(self) -> int | None:
        steps = number(self.plan.get("steps"))
        return None if steps is None else int(steps)

    @property
    def seconds(self) -> float:
        """Spent in steps; evaluation and samples not counted."""
        return math.fsum(value for row in self.rows if (value := number(row.get("seconds"))) is not None)

    @property
    def peak_memory_bytes(self) -> float | None:
        found = [value for row in self.rows if (value := number(row.get("memory_bytes"))) is not None]
        return max(found, default=None)

    @property
    def facts(self) -> Facts:
        """What the judgement of its figures needs to know."""
        guards = mapping(self.stage.get("guards"))
        try:
            limits = parse(LimitSettings, mapping(guards.get("limits")))
        except InputError:  # of another version, or damaged
            limits = LimitSettings()
        budget = number(self.objective.get("kl_budget"))
        tokens = number(mapping(mapping(self.data.get("tokens")).get("completion")).get("p50"))
        return Facts(limits if budget is None else limits.model_copy(update={"kl": budget}), tokens)

    def last(self, metric: str) -> float | None:
        """The last finite value of a figure."""
        return next((value for row in reversed(self.rows) if (value := number(row.get(metric))) is not None), None)

    def renamed(self, name: str) -> Run:
        """The same run under another name."""
        return replace(self, name=name)

    def state_in_words(self) -> str:
        """Such as `stopped at step 40 of 200`."""
        if self.state == "finished" and self.steps == (self.planned_steps or self.steps):
            return "finished"
        of = f" of {self.planned_steps}" if self.planned_steps is not None else ""
        return f"{self.state} at step {self.steps}{of}"


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one: files of strangers hold anything."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def read_run(path: Path, name: str | None = None) -> Run:
    """Read one run directory. Raises RunError where there is neither a recipe nor a figure."""
    if not path.is_dir():
        raise RunError(f"{path} {'is a file' if path.exists() else 'does not exist'}; give a run directory")
    if not (path / RECIPE).is_file() and not (path / METRICS).is_file():
        raise RunError(f"{path} is not a run directory: it has neither {RECIPE} nor {METRICS}")
    notes: list[str] = []
    text = _text(path / RECIPE, notes)
    rows = _in_order(_lines(path / METRICS, notes))
    return Run(
        path=path,
        name=name or path.resolve().name,
        state=_state(path),
        stage=_stage(text, notes),
        recipe_text=text,
        rows=rows,
        metrics=_metrics_of(rows),
        samples=_lines(path / "samples.jsonl", []),
        events=_lines(path / EVENTS, []),
        plan=_object(path / "plan.json", notes),
        data=_object(path / "data.json", notes),
        environment=_object(path / "environment.json", notes),
        forgetting=_object(path / "forgetting.json", []),
        parity=_object(path / "parity.json", []),
        changed=_changed(path),
        notes=tuple(notes),
    )


def stages_of(path: Path) -> list[Path]:
    """The folders of a chain's stages in their order; none for a run of one stage."""
    if not path.is_dir() or not (path / RECIPE).is_file() or (path / METRICS).is_file():
        return []
    found = [(int(number[1]), each) for each in path.iterdir() if (number := re.match(r"(\d+)-", each.name))]
    return [each for _, each in sorted(found) if (each / RECIPE).is_file() or (each / METRICS).is_file()]


def find_runs(folder: Path) -> list[Path]:
    """Every run directory of one stage at or below a folder, without what lies inside of a run."""
    if not folder.is_dir():
        raise RunError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give a folder with runs")
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if (here / METRICS).is_file() or ((here / RECIPE).is_file() and (here / "plan.json").is_file()):
            found.append(here)
            continue
        waiting += [each for each in _folders(here) if not each.name.startswith(".") and not each.is_symlink()]
    return sorted(found)


def _folders(path: Path) -> list[Path]:
    try:
        return [each for each in path.iterdir() if each.is_dir()]
    except OSError:
        return []


def _state(path: Path) -> State:
    if (path / "final").is_dir():
        return "finished"
    return "running" if _is_locked(path / ".lock") else "stopped"


def _is_locked(lock: Path) -> bool:
    """Whether a process holds the lock; asked with a shared lock that is given back at once."""
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _changed(path: Path) -> float:
    for name in (METRICS, RECIPE):
        if (path / name).is_file():
            return (path / name).stat().st_mtime
    return 0.0


def _text(file: Path, notes: list[str]) -> str:
    if not file.is_file():
        notes.append(f"{file.name} is missing.")
        return ""
    try:
        return file.read_bytes().decode("utf-8", errors="replace")
    except OSError as failure:
        notes.append(f"{file.name} cannot be read: {failure.strerror}.")
        return ""


def _stage(text: str, notes: list[str]) -> Mapping[str, Any]:
    if is_deep(text):
        notes.append(f"{RECIPE} is damaged: nested too deeply")
        return {}
    loader = _loader(text)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=loader)):
            raise ValueError("it has aliases, and no run writes any")
        recipe = mapping(yaml.load(text, Loader=loader))
    except (*NO_YAML, RecursionError) as fault:
        notes.append(f"{RECIPE} is damaged: {(str(fault).splitlines() or [type(fault).__name__])[0]}")
        return {}
    stages = listed(recipe.get("stages"))
    return mapping(stages[0]) if stages else recipe


def _loader(text: str) -> type[yaml.SafeLoader | yaml.CSafeLoader]:
    """The parser of libyaml where it is there: eight times as fast, but nesting by the thousand overflows its stack.

    A level of nesting takes a bracket, or a column of a line.
    """
    shallow = text.count("[") + text.count("{") < 500 and max(map(len, text.split("\n"))) < 1000
    return yaml.CSafeLoader if shallow and yaml.__with_libyaml__ else yaml.SafeLoader


def _object(file: Path, notes: list[str]) -> Mapping[str, Any]:
    if not file.is_file():
        notes.append(f"{file.name} is missing.")
        return {}
    try:
        return mapping(parse_json(_text(file, notes)))
    except ValueError:
        notes.append(f"{file.name} is damaged.")
        return {}


def _lines(file: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The rows of a file of JSON objects; a line that is none is left out."""
    if not file.is_file():
        notes.append(f"{file.name} is missing: no step was made.")
        return ()
    rows, bad = [], 0
    lines = _text(file, notes).split("\n")
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        notes.append(f"{file.name}: {bad} damaged {'line was' if bad == 1 else 'lines were'} left out.")
    return tuple(rows)


def _metrics_of(rows: Sequence[Row]) -> frozenset[str]:
    found: set[str] = set()
    for row in rows:
        found.update(key for key in row.keys() - found if number(row[key]) is not None)
    return frozenset(found)


def _in_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that say their step; of two for the same step the later one, which a resumed run wrote."""
    by_step = {step: row for row in rows if (step := step_of(row)) is not None}
    return tuple(by_step[step] for step in sorted(by_step))
