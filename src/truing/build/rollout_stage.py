"""Wires a stage that learns from its own completions: prompts, roles, rewards, and the source of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from truing.build.cast import Cast, build_cast
from truing.build.rewards import as_plain, check_reward
from truing.build.server import following
from truing.core.batch import Batch
from truing.core.errors import DataError, RecipeError
from truing.core.trees import Tree
from truing.data.examples import Example, Prompt
from truing.objectives.policy_gradient import RolloutObjective
from truing.recipe.schema import Stage
from truing.rl.engine import Engine, RoleEngine
from truing.rl.settings import RewardSettings
from truing.training.progress import Reporter
from truing.training.rollouts import Asking, Crew, RolloutPlan, RolloutSource
from truing.training.run_directory import RunDirectory
from truing.training.shared_rollouts import SharedEngine

if TYPE_CHECKING:
    from truing.build.stage import Assembled


def rollout_objective(stage: Stage, objective: RolloutObjective) -> RolloutObjective:
    """Check the rollout section against the method, and fill in what the method takes from it."""
    settings = stage.rollout
    group = settings.group_size or objective.group_size
    if group < objective.least_group:
        raise RecipeError(
            f"rollout.group_size is {group}, but {objective.name} compares the completions of a prompt with each "
            f"other; give at least {objective.least_group}"
        )
    if objective.once and (settings.epochs or 1) * settings.mini_batches > 1:
        raise RecipeError(
            f"{objective.name} may use a rollout for one step only, for it has no ratio to correct the next by; "
            "set rollout.epochs and rollout.mini_batches to 1"
        )
    return objective.for_rollouts(settings.max_new_tokens)


def rollout_plan(stage: Stage, objective: RolloutObjective) -> RolloutPlan:
    """How the stage's rollouts are made and used."""
    settings, batch = stage.rollout, stage.batch
    if batch.examples is None:
        raise RecipeError("rollouts are counted in prompts: give batch.examples, not batch.tokens")
    assert batch.micro_tokens is not None  # filled in when the stage was assembled
    return RolloutPlan(
        examples=batch.examples,
        mini_batches=settings.mini_batches,
        epochs=settings.epochs or objective.rollout_epochs,
        group_size=settings.group_size or objective.group_size,
        max_new_tokens=settings.max_new_tokens,
        normalize_on=settings.normalize_on,
        micro_tokens=batch.micro_tokens if stage.data.packing else 1,
        seed=stage.seed,
        shuffle=stage.data.shuffle,
    )


def total_steps(stage: Stage, plan: RolloutPlan, prompts: int) -> int:
    """Optimizer steps: as many as the recipe says, or those of so many passes over the prompts."""
    if stage.optim.max_steps is not None:
        return stage.optim.max_steps
    rollouts = max(1, round(stage.optim.epochs * prompts / plan.prompts))
    return rollouts * plan.epochs * plan.mini_batches


def check_room(trees: Sequence[Tree], max_new_tokens: int, positions: int | None, model: str) -> None:
    """Refuse prompts that leave no room for what is to be written behind them."""
    for tree in trees:
        if positions is not None and len(tree.prompt) + max_new_tokens > positions:
            raise DataError(
                f"{tree.origin}: a prompt of {len(tree.prompt)} tokens and rollout.max_new_tokens {max_new_tokens} "
                f"are more than the {positions} positions of {model}; lower data.max_length, which cuts prompts from "
                "their start, or rollout.max_new_tokens"
            )


@dataclass(frozen=True, slots=True, eq=False)
class RolloutParts:
    """What a trainer needs of a rollout stage."""

    source: RolloutSource
    cast: Cast


def rollout_parts(ready: Assembled, run: RunDirectory, reporter: Reporter) -> RolloutParts:
    """Load the roles and wire the source."""
    stage, built, objective = ready.stage, ready.built, ready.objective
    assert isinstance(objective, RolloutObjective)
    cast = build_cast(stage, built, criticised=objective.criticised, reporter=reporter)
    model, tokenizer = built.model, built.loaded.tokenizer
    shared = model.sharing == "tree"

    def annotate(batch: Batch) -> Batch:
        with torch.no_grad():
            batch = batch.with_columns(ref_logprobs=cast.reference.outputs(batch).logprobs)
            return batch if cast.value is None else batch.with_columns(values=cast.value.values(batch))

    def logprobs(batch: Batch) -> Tensor:
        with torch.no_grad():
            return cast.policy.outputs(batch).logprobs

    company = built.company
    crew = Crew(
        engine=_engine(ready, cast, run),
        temperature=stage.rollout.temperature,
        rewards=cast.rewards,
        annotate=annotate,
        logprobs=logprobs,
        collate=model.collate,
        size=lambda tree: tree.size if shared else tree.unshared_size,
        decode=lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        dealer=company.dealer,
        whole=company.whole,
    )
    dataset = ready.dataset
    source = RolloutSource(
        objective,
        _askings(dataset.train, dataset.prompts),
        _askings(dataset.held_out[: stage.evaluation.limit], dataset.prompts),
        rollout_plan(stage, objective),
        crew,
        ready.total_steps,
        reporter,
    )
    return RolloutParts(source, cast)


def _engine(ready: Assembled, cast: Cast, run: RunDirectory) -> Engine:
    """Who writes the completions."""
    built, server = ready.built, ready.stage.rollout.server
    if server is not None:
        return following(server, ready, cast, run.path)
    engine = RoleEngine(cast.policy, built.loaded.end_tokens, exact=built.dtype == torch.float32)
    ranks = built.company.ranks
    return SharedEngine(engine, ranks) if ranks.several else engine


def _askings(trees: Sequence[Tree], prompts: Mapping[Any, Prompt]) -> tuple[Asking, ...]:
    found = []
    for tree in trees:
        prompt = prompts[tree.origin]
        found.append(Asking(tree.prompt, as_plain(prompt.prompt), prompt.columns))
    return tuple(found)


def with_reward_stages(stage: Stage, earlier: Mapping[str, Path | None]) -> Stage:
    """Put the results of earlier reward stages, by name, where the rollout section means them.

    `earlier` is in the order of the recipe, with None for a result that is not there yet. Where no reward is named, the
    last of them is meant. Raises RecipeError where there is none.
    """
    rewards = stage.rollout.rewards
    if not rewards:
        if not earlier:
            raise RecipeError(
                f"stage {stage.name}: {stage.objective['use']} needs a reward; give rollout.rewards a Python function "
                "(./rewards.py:fn) or a reward model, or put a stage with objective: {use: reward} before it"
            )
        rewards = (RewardSettings(use=list(earlier)[-1]),)
    meant = tuple(
        reward.model_copy(update={"use": tuple(_meant(use, earlier) for use in reward.uses)}) for reward in rewards
    )
    return stage.model_copy(update={"rollout": stage.rollout.model_copy(update={"rewards": meant})})


def _meant(use: str, earlier: Mapping[str, Path | None]) -> str:
    if use not in earlier:
        return use
    return str(earlier[use] or use)


def check_rewards(stage: Stage, earlier: Sequence[str], examples: Sequence[Example]) -> None:
    """Find what is wrong with a stage's rewards before anything is trained: files, folders, and functions by trying."""
    for reward in stage.rollout.rewards:
        check_reward(reward, stage.rollout.reward_timeout, examples, earlier)


def evaluator(source: RolloutSource) -> Callable[[Mapping[str, float]], Mapping[str, float]] | None:
    """What measures on held-out prompts, where there are any."""
    return (lambda memory: source.evaluate()) if source.held_out else None
