"""What a study's file may say, and the experiment that it describes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from truing.core.errors import RecipeError
from truing.core.settings import Settings, parse
from truing.lab.arms import REFERENCE, Arm, Experiment
from truing.recipe.yaml_file import read
from truing.world.records import WorldSettings


class ArmSettings(Settings):
    """An arm, or a family of them."""

    name: str
    """With `{knob}` where `each` varies one."""
    each: dict[str, tuple[int | float | str, ...]] = Field(default_factory=dict)
    """Values that are put in for `{knob}` everywhere below; of several knobs, every combination."""
    stage: dict[str, Any]
    """Keys of a recipe's stage."""
    data: str
    """A data file of the world."""
    start: str = REFERENCE
    """The arm whose result is trained on."""
    reward: str | None = None
    """The arm that pays, or `truth`."""
    world: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the world that differ for this arm's data."""
    tags: dict[str, int | float | str] = Field(default_factory=dict)
    """What the figure and the table call it by, beside what `each` varies."""


class FigureSettings(Settings):
    """What a study draws."""

    use: Literal["frontier", "lines", "overoptimisation"]
    """Reward against KL; a figure against what is varied; proxy and truth against √KL with fitted laws."""
    x: str = ""
    """Of lines: the tag along the axis."""
    by: str = "method"
    """Of lines: the tag that makes a line."""
    y: tuple[str, ...] = ("reward",)
    """Of lines: a panel each; `reward`, `kl`, `forgetting`, or any figure of the run."""
    x_label: str = ""
    log_x: bool = False


class StudySettings(Settings):
    """A study."""

    title: str
    question: str
    """What it is to find out, in a sentence or two."""
    findings: tuple[str, ...] = ()
    """What was found, written by who looked at the results."""
    seeds: int = Field(default=3, ge=1)
    prompts: int = Field(default=6, ge=1)
    looks: int = Field(default=0, ge=0)
    world: dict[str, Any] = Field(default_factory=dict)
    base: dict[str, Any]
    arms: tuple[ArmSettings, ...]
    figures: tuple[FigureSettings, ...]


def load_study(file: Path) -> StudySettings:
    """Read and check a study's file."""
    document = read(file)
    return parse(StudySettings, document.values, where=document.where, error=RecipeError)


def to_experiment(settings: StudySettings) -> Experiment:
    """The experiment that a study describes, every family of arms written out."""
    return Experiment(
        arms=tuple(arm for family in settings.arms for arm in _arms(family)),
        base=settings.base,
        world=WorldSettings(**settings.world),
        seeds=tuple(range(settings.seeds)),
        prompts=settings.prompts,
        looks=settings.looks,
    )


def _arms(family: ArmSettings) -> Iterator[Arm]:
    for values in itertools.product(*family.each.values()):
        knobs = dict(zip(family.each, values, strict=True))
        yield Arm(
            name=family.name.format(**knobs),
            stage=_filled(family.stage, knobs),
            data=family.data,
            start=family.start.format(**knobs),
            reward=None if family.reward is None else family.reward.format(**knobs),
            world=_filled(family.world, knobs),
            tags={**family.tags, **knobs},
        )


def _filled(value: Any, knobs: Mapping[str, int | float | str]) -> Any:
    """Put knobs in: a text that is nothing but `{knob}` becomes its value, elsewhere it is written into the text."""
    if isinstance(value, dict):
        return {name: _filled(below, knobs) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(below, knobs) for below in value]
    if not isinstance(value, str):
        return value
    whole = value.removeprefix("{").removesuffix("}")
    if value == f"{{{whole}}}" and whole in knobs:
        return knobs[whole]
    return value.format(**knobs)
