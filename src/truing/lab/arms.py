"""What an experiment on the world consists of: arms, each one training run measured exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truing.core.errors import InputError
from truing.world.records import WorldSettings

BASE, REFERENCE = "base", "sft"
"""The model before everything, and the arm that KL divergence is measured from."""

PROMPTS = 4
"""Held-out prompts whose answers are all gone through."""

TRUTH = "truth"
"""Names the program itself as the reward of an arm."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: a stage of a recipe, and what it starts from."""

    name: str
    stage: Mapping[str, Any]
    """Keys of a recipe's stage: objective, optim, batch, adapter, rollout."""
    data: str
    """A data file of the world, by its name in `truing.world.records.ROWS`."""
    start: str = REFERENCE
    """The arm whose result is trained on."""
    reward: str | None = None
    """For methods that learn from completions of their own: the arm that is their reward model, or `truth`."""
    world: Mapping[str, Any] = field(default_factory=dict)
    """Knobs of the world that are turned for this arm's data alone."""
    why: str = ""
    """What it is there to show."""
    tags: Mapping[str, float | str] = field(default_factory=dict)
    """What a study varies, for its figure."""

    @property
    def scores(self) -> bool:
        """Whether it trains a reward model."""
        return bool(self.stage["objective"]["use"] == "reward")

    @property
    def folder(self) -> str:
        """Its name as a folder."""
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in self.name.replace("β", "beta")).strip("-")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms over one base model, repeated with several seeds."""

    arms: tuple[Arm, ...]
    base: Mapping[str, Any]
    """Keys of the stage that trains the base model."""
    world: WorldSettings = field(default_factory=WorldSettings)
    seeds: tuple[int, ...] = (0,)
    """Of data, reference and arms; the base model is the same for all."""
    prompts: int = PROMPTS
    """Held-out prompts that are gone through."""
    looks: int = 0
    """Exact measurements while an arm is trained, beside the one at its end."""

    def __post_init__(self) -> None:
        known = {BASE}
        for arm in self.arms:
            for needed in (arm.start, arm.reward):
                if needed not in (None, TRUTH) and needed not in known:
                    raise InputError(f"arm '{arm.name}' needs '{needed}', which does not come before it")
            if arm.name in known:
                raise InputError(f"two arms are called '{arm.name}'")
            known.add(arm.name)
        if REFERENCE not in known:
            raise InputError(f"an experiment has an arm '{REFERENCE}', from which KL divergence is measured")


@dataclass(frozen=True, slots=True)
class Job:
    """One arm with one seed, and where its files lie."""

    arm: Arm
    seed: int
    recipe: Path
    run: Path
    seed_folder: Path
    """Holds the yardstick, and the scores that reward models give to all its answers."""
    proxy: str | None
    """The reward arm whose opinion of the policy is measured too."""
    prompts: int
    looks: int


@dataclass(frozen=True, slots=True)
class Look:
    """An exact measurement after so many steps."""

    step: int
    reward: float
    kl: float
    proxy: float | None


@dataclass(frozen=True, slots=True)
class BestOf:
    """What a reward model likes best of so many samples of the reference, exactly; each figure for every prompt."""

    count: int
    reward: tuple[float, ...]
    kl: tuple[float, ...]
    proxy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """How probable each true reward is under the reference, for one prompt."""

    rewards: tuple[float, ...]
    masses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an arm gave and cost, with one seed."""

    arm: str
    seed: int
    reward: tuple[float, ...]
    """Expected true reward of each prompt; empty for a reward model."""
    kl: tuple[float, ...]
    figures: Mapping[str, float]
    """Means of everything measured exactly, and what a run says of itself at its end."""
    looks: tuple[Look, ...]
    rows: int
    """Rows of data that were read, or completions that were sampled."""
    steps: int
    seconds: float
    """Of training alone."""
    bytes: int
    """Peak memory of training, libraries included."""
    parameters: int
    """Trained ones."""
    skipped: int
    """Steps whose gradient was not finite."""
    spikes: int
    """Steps whose gradient was ten times as large as usual."""
    answers: tuple[tuple[str, str, float], ...]
    """Fixed prompts, the likeliest answers, and what they are worth."""
    best_of: tuple[BestOf, ...] = ()
    """Of a reward model."""
    levels: tuple[Level, ...] = ()
    """Of the reference: what its frontier is made of, prompt by prompt."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        rows = {name: tuple(values[name]) for name in ("reward", "kl")}
        return cls(
            **{
                **values,
                **rows,
                "looks": tuple(Look(**look) for look in values["looks"]),
                "answers": tuple((str(p), str(answer), float(reward)) for p, answer, reward in values["answers"]),
                "best_of": tuple(
                    BestOf(one["count"], *(tuple(one[name]) for name in ("reward", "kl", "proxy")))
                    for one in values["best_of"]
                ),
                "levels": tuple(Level(tuple(one["rewards"]), tuple(one["masses"])) for one in values["levels"]),
            }
        )
