"""The arms of the tour: the same start, and every method of the survey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing.lab.arms import BASE, PROMPTS, REFERENCE, Arm, Experiment
from truing.world.records import WorldSettings

REWARD, PPO, PPO_FREE, LORA_SFT = "reward", "ppo", "ppo without KL", "sft with LoRA"

LORA: Mapping[str, Any] = {"use": "lora", "rank": 8}
BASE_STAGE: Mapping[str, Any] = {
    "objective": {"use": "sft"},
    "optim": {"lr": 1e-2, "max_steps": 300},
    "batch": {"examples": 64},
}


def tour_experiment(seeds: tuple[int, ...], *, quick: bool) -> Experiment:
    """All arms; the quick one leaves SFT with LoRA out, takes half the steps, and is measured on fewer prompts."""
    share = 0.5 if quick else 1.0

    def steps(count: int) -> int:
        return round(count * share)

    return Experiment(
        arms=tuple(arm for arm in _arms(steps(120), steps(120)) if not (quick and arm.name == LORA_SFT)),
        base={**BASE_STAGE, "optim": {**BASE_STAGE["optim"], "max_steps": 180 if quick else 300}},
        world=WorldSettings(corpus=20_000 if not quick else 10_000),
        seeds=seeds,
        prompts=2 if quick else PROMPTS,
        looks=0 if quick else 1,
    )


def _arms(offline: int, online: int) -> tuple[Arm, ...]:
    def pairs(name: str, why: str, objective: Mapping[str, Any], data: str = "pairs", lora: bool = True) -> Arm:
        stage = {
            "objective": dict(objective),
            "optim": {"lr": 5e-4 if lora else 2e-4, "max_steps": offline},
            "batch": {"examples": 32},
            "adapter": LORA if lora else "none",
        }
        return Arm(name, stage, data, why=why)

    def ppo(name: str, why: str, kl_coef: float) -> Arm:
        stage = {
            "objective": {"use": "ppo", "kl_coef": kl_coef},
            "optim": {"lr": 1e-3, "max_steps": online, "schedule": "constant"},
            "batch": {"examples": 32},
            "rollout": {"value_lr": 5e-3},
            "adapter": LORA,
        }
        return Arm(name, stage, "training_prompts", reward=REWARD, why=why)

    def sft(name: str, why: str, lora: bool) -> Arm:
        stage = {
            "objective": {"use": "sft"},
            "optim": {"lr": 3e-3, "max_steps": offline},
            "batch": {"examples": 32},
            "adapter": LORA if lora else "none",
        }
        return Arm(name, stage, "demonstrations", start=BASE, why=why)

    reward = {
        "objective": {"use": "reward"},
        "optim": {"lr": 2e-3, "max_steps": offline},
        "batch": {"examples": 1},  # all comparisons of a prompt, about 55
        "adapter": LORA,
    }
    return (
        sft(REFERENCE, "learns to imitate demonstrations; everything below starts from it", lora=False),
        Arm(REWARD, reward, "pairs", why="learns to say which of two answers readers prefer"),
        ppo(PPO, "RLHF: samples, is paid by the reward model, and is held to the start by a KL term", 0.3),
        ppo(PPO_FREE, "the same without the KL term: it may go where the reward model errs", 0.0),
        pairs("dpo", "learns from the comparisons directly", {"use": "dpo", "beta": 0.5}),
        pairs("kto", "learns from thumbs up and down", {"use": "kto", "beta": 0.5}, data="judgements"),
        pairs("dpo on all weights", "the same as dpo without LoRA", {"use": "dpo", "beta": 0.5}, lora=False),
        sft(LORA_SFT, "imitation with 8 % of the weights trained", lora=True),
    )
