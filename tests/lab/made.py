"""Outcomes of an experiment that nobody ran, for what is made of them."""

from __future__ import annotations

from truing.lab.arms import BASE, REFERENCE, Arm, BestOf, Experiment, Level, Look, Outcome

SFT = Arm(
    REFERENCE, {"objective": {"use": "sft"}, "optim": {"max_steps": 4}, "adapter": "none"}, "demonstrations", BASE
)
LEVEL = Level((0.0, 0.5, 1.0), (0.4, 0.4, 0.2))  # the reference expects 0.4


def arm(name: str, **changes: object) -> Arm:
    stage = {"objective": {"use": "dpo"}, "optim": {"max_steps": 4}}
    return Arm(**{"name": name, "stage": stage, "data": "pairs", **changes})  # type: ignore[arg-type]


def outcome(name: str, reward: tuple[float, ...], kl: float = 0.2, seed: int = 0, **changes: object) -> Outcome:
    values: dict[str, object] = {
        "arm": name,
        "seed": seed,
        "reward": reward,
        "kl": (kl,) * len(reward),
        "figures": {},
        "looks": (),
        "rows": 100,
        "steps": 4,
        "seconds": 1.0,
        "bytes": 400_000_000,
        "parameters": 1000,
        "skipped": 0,
        "spikes": 0,
        "answers": (("Five stars for the old bakery:", "The bread was nice.", 0.5),) if reward else (),
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def reference(prompts: int = 3, seed: int = 0) -> Outcome:
    return outcome(REFERENCE, (0.4,) * prompts, kl=0.0, seed=seed, levels=(LEVEL,) * prompts)


def base(prompts: int = 3, seed: int = 0) -> Outcome:
    return outcome(BASE, (0.2,) * prompts, kl=1.0, seed=seed)


def scorer(name: str = "reward", prompts: int = 3, seed: int = 0) -> Outcome:
    points = tuple(
        BestOf(n, (0.4 + gain,) * prompts, (kl,) * prompts, (float(n),) * prompts)
        for n, gain, kl in ((1, 0.0, 0.0), (4, 0.2, 0.4), (16, 0.3, 1.0), (64, 0.25, 1.8))
    )
    return outcome(name, (), best_of=points, figures={"eval_accuracy": 0.8, "correlation": 0.7}, seed=seed)


def look(step: int, reward: float, kl: float, proxy: float | None = None) -> Look:
    return Look(step, reward, kl, proxy)


def experiment(*arms: Arm, seeds: tuple[int, ...] = (0,), prompts: int = 3) -> Experiment:
    return Experiment((SFT, *arms), {"objective": {"use": "sft"}}, seeds=seeds, prompts=prompts)
