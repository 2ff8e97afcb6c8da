"""Does training make models better? Every method on a small world whose true reward is a program.

One base model; then, for each seed, SFT and from it DPO, KTO, a reward model, PPO and GRPO with that reward model, and
PPO against a flawed reward model with and without a hold on the KL divergence. True reward of sampled answers to
prompts that nothing was trained on, and that no setting was chosen on.

OMP_NUM_THREADS=1 python benchmarks/learning.py
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import learning_judge as judging
from learning_judge import Estimate, Verdict
from learning_runs import Trained, apart, stage, train
from learning_world import (
    TEST_PAIRS,
    TUNING_PROMPTS,
    WORDY_BIAS,
    WORDY_PAIRS,
    WORLD,
    Files,
    write_files,
)
from truing.world.base_model import MAX_NEW_TOKENS, TEMPERATURE, write_base_model

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TRUE_REWARD = f"{HERE / 'learning_world.py'}:true_rewards"

BASE: dict[str, Any] = {"optim": {"lr": 8e-3, "max_steps": 500}, "batch": {"examples": 64}}
PPO: dict[str, Any] = {
    "optim": {"lr": 1e-3, "max_steps": 120},
    "batch": {"examples": 64},
    "rollout": {"max_new_tokens": MAX_NEW_TOKENS, "value_lr": 5e-3},
}
GRPO: dict[str, Any] = {
    "objective": {"use": "grpo", "kl_coef": 0.1, "kl_estimator": "k1"},
    "optim": {"lr": 1e-3, "max_steps": 60},
    "batch": {"examples": 16},
    "rollout": {"max_new_tokens": MAX_NEW_TOKENS, "group_size": 8},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"objective": {"use": "sft"}, "optim": {"lr": 3e-3, "max_steps": 120}, "batch": {"examples": 32}},
    "dpo": {
        "objective": {"use": "dpo", "beta": 0.5},
        "optim": {"lr": 4e-4, "max_steps": 120},
        "batch": {"examples": 32},
    },
    "kto": {
        "objective": {"use": "kto", "beta": 0.5},
        "optim": {"lr": 4e-4, "max_steps": 120},
        "batch": {"examples": 32},
    },
    # All comparisons of a prompt make one example here, about nine.
    "reward": {"objective": {"use": "reward"}, "optim": {"lr": 3e-3, "max_steps": 480}, "batch": {"examples": 4}},
    "ppo": {"objective": {"use": "ppo", "kl_coef": 0.1}, **PPO},
    "grpo": GRPO,
    "grpo, k3": {**GRPO, "objective": {"use": "grpo", "kl_coef": 0.1, "kl_estimator": "k3"}},
    "ppo, true reward": {"objective": {"use": "ppo", "kl_coef": 0.05}, **PPO},
    "grpo, true reward": GRPO,
    "flawed reward": {
        "objective": {"use": "reward"},
        "optim": {"lr": 3e-3, "max_steps": 40},
        "batch": {"examples": 32},
    },
}
LEARNERS = ("dpo", "kto", "ppo", "grpo")
"""What has to raise the true reward."""
PAPER = "grpo, k3"
"""GRPO as in its paper, with the KL term in the loss: shown beside the other, not required to do well."""
BY_PROXY = ("ppo", "grpo", PAPER)
CHECKS = ("ppo, true reward", "grpo, true reward")
HACKS: dict[str, dict[str, Any]] = {
    "kl_coef: 0": {"kl_coef": 0.0},
    "kl_coef: 0.2": {"kl_coef": 0.2},
    "kl_coef: 0, kl_budget: 1.5": {"kl_coef": 0.0, "kl_budget": 1.5},
}
HACK_OPTIM = {"lr": 1e-3, "max_steps": 160, "schedule": "constant"}
WATCHED = 20  # steps between looks at a run against the flawed reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of everything after the base model")
    parser.add_argument("--quick", action="store_true", help="the first seed alone and 48 prompts; writes no results")
    parser.add_argument("--work", type=Path, default=Path("bench_work/learning"), help="where models and data lie")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = measure(chosen.work, chosen.seeds[:1] if chosen.quick else chosen.seeds, 48 if chosen.quick else None)
    found["machine"] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": time.perf_counter() - began,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    report = tables(found)
    print(report)
    if not chosen.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "learning.md").write_text(report, encoding="utf-8")
        (RESULTS / "learning.json").write_text(json.dumps(brief(found), indent=1) + "\n", encoding="utf-8")


def measure(work: Path, seeds: Sequence[int], limit: int | None) -> dict[str, Any]:
    """Train and judge everything; return what the tables are made of, without a path in it."""
    work = work.resolve()
    files = write_files(work / "data")
    write_base_model(work / "blank", world=WORLD)
    base = train(
        {
            "model": str(work / "blank"),
            "adapter": "none",
            "objective": {"use": "sft"},
            "data": {"path": str(files.world.corpus), "max_length": 64, "loss_on": "all"},
            "samples": {"count": 0},
            "precision": {"matmul": "highest"},
            **BASE,
        },
        work / "base",
    )
    prompts = files.judged[:limit]
    found: dict[str, Any] = {
        "settings": {"base": BASE, **SETTINGS, "hacks": HACKS, "hack_optim": HACK_OPTIM},
        "seeds": list(seeds),
        "prompts": len(prompts),
        "samples": judging.SAMPLES,
        "base": _told(base, apart(lambda: judging.judge(base.final, base.final, prompts, {}, whole=False)), None),
        "accuracy": {
            "length alone": judging.length_accuracy(files.test_pairs),
            "bag of words": apart(lambda: judging.bag_of_words_accuracy(files.world.pairs, files.test_pairs)),
            "true reward": judging.true_accuracy(files.test_pairs),
        },
        "runs": {},
        "hacks": {},
    }
    for seed in seeds:
        one_seed(work / str(seed), base.final, files, seed, prompts, found, checks=seed == seeds[0])
    return found


def one_seed(
    work: Path, base: Path, files: Files, seed: int, prompts: Sequence[str], found: dict[str, Any], *, checks: bool
) -> None:
    """Everything after the base model, with one seed."""
    data = {
        "sft": files.world.demonstrations,
        "dpo": files.world.pairs,
        "kto": files.judgements,
        "reward": files.world.pairs,
        "flawed reward": files.wordy_pairs,
    }
    done: dict[str, Trained] = {}

    def go(name: str, settings: Mapping[str, Any], rewards: str | None = None) -> Trained:
        own = dict(settings)
        if rewards is not None:
            own["rollout"] = {**own["rollout"], "rewards": [rewards]}
        start = None if name == "sft" else done["sft"].final
        recipe = stage(base, start, data.get(name, files.training_prompts), **own, seed=seed)
        done[name] = train(recipe, work / name.replace(": ", "_").replace(", ", "_").replace(" ", "_"))
        print(f"seed {seed}: {name}, {done[name].cpu_seconds:.0f} s", flush=True)
        return done[name]

    for name in ("sft", "dpo", "kto", "reward", "flawed reward"):
        go(name, SETTINGS[name])
    proxy, flawed = done["reward"].final, done["flawed reward"].final
    for name in BY_PROXY:
        go(name, SETTINGS[name], str(proxy))
    for name in CHECKS if checks else ():
        go(name, SETTINGS[name], TRUE_REWARD)
    for name in ("sft", *LEARNERS, PAPER, *(CHECKS if checks else ())):
        verdict = apart(
            lambda name=name: judging.judge(done[name].final, done["sft"].final, prompts, {"reward": proxy})
        )
        found["runs"].setdefault(name, []).append(_told(done[name], verdict, seed))
    for name in ("reward", "flawed reward"):
        hits = apart(lambda name=name: judging.accuracy(done[name].final, files.test_pairs))
        found["accuracy"].setdefault(name, []).append(hits)
        found["runs"].setdefault(name, []).append(_told(done[name], None, seed))
    for name, held in HACKS.items():
        watch = {
            "every": WATCHED,
            "prompts": list(prompts),
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": TEMPERATURE,
        }
        settings = {**PPO, "objective": {"use": "ppo", **held}, "optim": HACK_OPTIM, "samples": watch}
        run = go(name, settings, str(flawed))
        looks = apart(lambda run=run: judging.looks(run.folder, flawed))
        for look in looks:  # the KL of the rollout after it is that of the policy looked at
            look["kl"] = next((row["objective/kl"] for row in run.metrics if row["step"] > look["step"]), None)
        verdict = apart(lambda run=run: judging.judge(run.final, done["sft"].final, prompts, {"flawed": flawed}))
        found["hacks"].setdefault(name, []).append({**_told(run, verdict, seed), "looks": looks})


def _told(run: Trained, verdict: Verdict | None, seed: int | None) -> dict[str, Any]:
    return {
        "seed": seed,
        "steps": run.last["step"],
        "cpu_seconds": run.cpu_seconds,
        "peak_bytes": run.peak_bytes,
        **({} if verdict is None else asdict(verdict)),
    }


def brief(found: Any, name: str = "") -> Any:
    """Results as they are kept: numbers of single prompts with four digits, accuracies as mean and half width."""
    if isinstance(found, dict):
        return {key: brief(value, key if name != "accuracy" else "hits") for key, value in found.items()}
    if isinstance(found, list) and found and isinstance(found[0], float) and name == "hits":
        return asdict(Estimate.of(found))
    if isinstance(found, list) and found and isinstance(found[0], float):
        return " ".join(f"{value:.4g}" for value in found)
    return [brief(value, name) for value in found] if isinstance(found, list) else found


def tables(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    machine, runs = found["machine"], found["runs"]
    seeds = ", ".join(str(seed) for seed in found["seeds"])
    columns = " | ".join(f"seed {seed}" for seed in found["seeds"])
    lines = [
        "# Learning",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread, load "
        f"{machine['load_average']:.1f}, {machine['time']}; torch {machine['torch']}. "
        f"`OMP_NUM_THREADS=1 python benchmarks/learning.py`, {machine['seconds'] / 60:.0f} minutes.",
        "",
        f"One base model of 0.1 M parameters; seeds {seeds} of everything after it, LoRA of rank 8. True reward (0 to "
        f"1) of {found['samples']} answers at temperature {TEMPERATURE} to each of {found['prompts']} prompts that "
        f"were neither trained on nor used to choose settings (those were chosen with {TUNING_PROMPTS} other "
        "held-out prompts and seed 0). Intervals are 95 %: over prompts, whose answers count as one observation; over "
        "seeds by Student's t. Seconds are CPU seconds of a run, without imports; memory is the resident peak of its "
        "process, imports included. KL is KL(policy ‖ SFT) in nats a completion, estimated from answers at temperature "
        "1.",
        "",
        "## True reward",
        "",
        f"| method | {columns} | mean over seeds | KL from SFT | words | CPU seconds | peak memory |",
        "|---|" + "---|" * (len(found["seeds"]) + 5),
        _row("base", [found["base"]], len(found["seeds"])),
        *(_row(name, runs[name], len(found["seeds"])) for name in ("sft", *LEARNERS, PAPER, *CHECKS)),
        *(_row(name, runs[name], len(found["seeds"])) for name in ("reward", "flawed reward")),
        "",
        "## What each method adds to SFT",
        "",
        "Differences prompt by prompt to the SFT model of the same seed.",
        "",
        f"| method | {columns} | mean over seeds | beyond the intervals |",
        "|---|" + "---|" * (len(found["seeds"]) + 2),
        *(_gain(name, runs) for name in (*LEARNERS, PAPER)),
        "",
        "`grpo` takes the KL term off the reward (`kl_estimator: k1`); `grpo, k3` adds it to the loss, as the paper "
        "and the default have it. k3 pulls a token down by kl_coef at most, however improbable to the reference, so "
        "it does not hold a policy that has found an answer which the reward model overrates.",
        "",
        "## The reward model",
        "",
        f"Accuracy on {TEST_PAIRS:,} comparisons of held-out prompts, by the noisy readers who labelled the training "
        "pairs. The bag of words is a logistic regression on differences of word counts, fitted on the same pairs; the "
        "true reward is the most that can be reached against such readers.",
        "",
        "| judge | accuracy | beyond length alone | beyond the bag of words |",
        "|---|---|---|---|",
        *_accuracies(found),
        "",
        "## Exploiting a flawed reward",
        "",
        f"PPO against a reward model from {WORDY_PAIRS} comparisons whose readers were impressed by length: a word "
        f"seemed worth {WORDY_BIAS} of reward to them. Answers to the judged prompts every {WATCHED} steps, one a "
        "prompt; mean over seeds, interval over seeds. The proxy is the flawed model's score as it stands; KL is "
        "`objective/kl` of the rollout that follows.",
        "",
        *_curves(found),
        "",
        "At the end, judged as in the first table:",
        "",
        f"| held by | {columns} | minus SFT | proxy minus SFT's | KL | steps |",
        "|---|" + "---|" * (len(found["seeds"]) + 4),
        *(_hack_row(name, found) for name in HACKS),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, runs: Sequence[Mapping[str, Any]], width: int) -> str:
    judged = "rewards" in runs[0]
    cells = [str(Estimate.of(run["rewards"])) if judged else "" for run in runs] + [""] * (width - len(runs))
    over = Estimate.over_seeds([fmean(run["rewards"]) for run in runs]) if judged and len(runs) > 1 else ""
    kl = f"{abs(fmean(fmean(run['kl']) for run in runs)):.2f}" if judged and runs[0]["kl"] else ""
    words = f"{fmean(fmean(run['words']) for run in runs):.1f}" if judged else ""
    seconds = fmean(run["cpu_seconds"] for run in runs)
    peak = max(run["peak_bytes"] for run in runs) / 1e6
    return f"| {name} | {' | '.join(cells)} | {over} | {kl} | {words} | {seconds:.0f} | {peak:.0f} MB |"


def differences(run: Mapping[str, Any], start: Mapping[str, Any]) -> list[float]:
    """Prompt by prompt."""
    return [a - b for a, b in zip(run["rewards"], start["rewards"], strict=True)]


def _gain(name: str, runs: Mapping[str, Any]) -> str:
    gains = [Estimate.of(differences(run, start)) for run, start in zip(runs[name], runs["sft"], strict=True)]
    over = Estimate.over_seeds([gain.mean for gain in gains])
    each = sum(gain.mean > gain.half for gain in gains)
    seeds = "" if math.isnan(over.half) else f"; over seeds: {'yes' if over.mean > over.half else 'no'}"
    cells = " | ".join(f"{gain.mean:+.3f} ± {gain.half:.3f}" for gain in gains)
    return f"| {name} | {cells} | {over.mean:+.3f} ± {over.half:.3f} | {each} of {len(gains)} seeds{seeds} |"


def _accuracies(found: Mapping[str, Any]) -> list[str]:
    accuracy = found["accuracy"]
    length, words = accuracy["length alone"], accuracy["bag of words"]
    rows = [("length alone", length), ("bag of words", words), ("true reward", accuracy["true reward"])]
    for name in ("reward", "flawed reward"):
        rows += [(f"{name}, seed {s}", own) for s, own in zip(found["seeds"], accuracy[name], strict=True)]

    def beyond(own: Sequence[float], other: Sequence[float]) -> str:
        gap = Estimate.of([a - b for a, b in zip(own, other, strict=True)])
        return f"{gap.mean:+.3f} ± {gap.half:.3f}"

    return [
        f"| {name} | {Estimate.of(own)} | {'' if own is length else beyond(own, length)} | "
        f"{'' if own is words else beyond(own, words)} |"
        for name, own in rows
    ]


def _curves(found: Mapping[str, Any]) -> list[str]:
    lines = ["| step | " + " | ".join(f"{name}: true | proxy | KL" for name in HACKS) + " |"]
    lines.append("|---|" + "---|" * (3 * len(HACKS)))
    for step in range(0, HACK_OPTIM["max_steps"] + 1, WATCHED):
        cells = []
        for runs in found["hacks"].values():
            looks = [look for run in runs for look in run["looks"] if look["step"] == step]
            if len(looks) < len(runs):
                cells += ["ended" if not looks else f"{len(looks)} left", "", ""]
                continue
            true, proxy = (Estimate.over_seeds([fmean(look[key]) for look in looks]) for key in ("true", "proxy"))
            kls = [look["kl"] for look in looks if look["kl"] is not None]
            cells += [str(true), f"{proxy.mean:.2f} ± {proxy.half:.2f}", f"{abs(fmean(kls)):.1f}" if kls else ""]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


def _hack_row(name: str, found: Mapping[str, Any]) -> str:
    runs, starts = found["hacks"][name], found["runs"]["sft"]
    over = Estimate.over_seeds([fmean(differences(run, start)) for run, start in zip(runs, starts, strict=True)])
    first = [fmean(run["looks"][0]["proxy"]) for run in runs]
    proxy = Estimate.over_seeds(
        [fmean(run["proxies"]["flawed"]) - begun for run, begun in zip(runs, first, strict=True)]
    )
    cells = " | ".join(str(Estimate.of(run["rewards"])) for run in runs)
    kl = fmean(fmean(run["kl"]) for run in runs)
    steps = ", ".join(str(run["steps"]) for run in runs)
    return (
        f"| {name} | {cells} | {over.mean:+.3f} ± {over.half:.3f} | {proxy.mean:+.2f} ± {proxy.half:.2f} | {kl:.1f} | "
        f"{steps} |"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
