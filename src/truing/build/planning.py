"""The plan of a stage that is about to run: its real rows, on the device at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from truing.build.rollout_stage import rollout_plan
from truing.core.errors import ModelError
from truing.core.trees import Tree
from truing.models.calibration import Widths, rate_of
from truing.models.nf4 import stored_bytes
from truing.objectives.policy_gradient import RolloutObjective
from truing.planner.architecture import Architecture, architecture
from truing.planner.machine import SHARE_OF_OWN, Machine, shared_rate, this_cpu
from truing.planner.methods import METHODS, Method
from truing.planner.plan import Plan, Repack, make_plan, smallest_change
from truing.planner.request import reward_models
from truing.planner.setting import Row, Setting, Work, packed
from truing.planner.text import duration, gib
from truing.recipe.schema import Stage
from truing.training.progress import Reporter, resident_bytes

if TYPE_CHECKING:
    from truing.build.stage import Assembled

LESS = 0.8
"""Share of what has just failed that a remedy may need."""


def forecast(ready: Assembled) -> Plan | None:
    """Predict what a stage needs; None for a model that the planner knows no layer of.

    Every micro-batch of the run is looked at, so that the longest real one is planned for exactly.
    """
    try:
        model = architecture(ready.built.loaded.module.config.get_text_config().to_dict(), ready.built.start.model)
    except ModelError:
        return None
    machine = _machine(ready, model)
    return make_plan(model, _setting(ready), repacker(ready), machine, _process(ready))


def _process(ready: Assembled) -> int | None:
    """What this process holds besides the model; None where that cannot be told, or is not where training happens."""
    resident = resident_bytes() if ready.built.device.type == "cpu" else None
    if resident is None:
        return None
    return max(resident - stored_bytes(ready.built.loaded.module), 0)


def tell(plan: Plan | None, repack: Repack, reporter: Reporter) -> None:
    """Say what is predicted, and warn strongly where it is more than there is."""
    if plan is None or plan.machine is None:
        return
    needed, there = gib(plan.memory.total), gib(plan.machine.memory)
    seconds = plan.cost.seconds
    if seconds is not None:
        reporter.say(f"  time: about {duration(seconds)} predicted for {plan.cost.steps:,} steps")
    if plan.fits:
        reporter.say(f"  memory: {needed} predicted, {there} in {plan.machine.name}")
        return
    change = smallest_change(plan, repack)
    advice = "" if change is None else f"; {change.arguments} would need {gib(change.memory.total)}"
    reporter.warn(
        f"this needs about {needed}, but {plan.machine.name} has {there}: expect it to run out of memory in "
        f"{plan.memory.moment}{advice}"
    )


def remedy(plan: Plan | None, repack: Repack) -> str:
    """What to say behind "out of memory": the part that grows, and the least that helps with the same batch.

    Memory has run out, so that there is less than was thought; what is proposed needs a fifth less than this did.
    """
    if plan is None or plan.machine is None:
        return "; lower batch.micro_tokens, which leaves the batch of a step as it is"
    term = plan.memory.largest_to_grow
    limit = min(plan.machine.memory, int(LESS * plan.memory.total))
    tight = replace(plan, machine=replace(plan.machine, memory=limit))
    said = (
        f". Of {gib(plan.memory.total)} predicted, {gib(plan.memory.terms[term])} are {term}, the largest part that a "
        "setting changes"
    )
    change = smallest_change(tight, repack)
    if change is None:
        return f"{said}; no setting needs much less: take a smaller model, or shorter rows (data.max_length)"
    return (
        f"{said}. The smallest change that keeps the batch of a step: {change.arguments} ({gib(change.memory.total)})"
    )


def _setting(ready: Assembled) -> Setting:
    stage = ready.stage
    assert stage.batch.micro_tokens is not None  # filled in when the stage was assembled
    return Setting(
        name=ready.objective.name,
        method=_method(ready),
        adapter=stage.adapter,
        base="bf16" if ready.built.dtype == torch.bfloat16 else "fp32",
        device="cuda" if ready.built.device.type == "cuda" else "cpu",
        checkpointing=stage.precision.gradient_checkpointing,
        micro_tokens=ready.plan.micro_tokens,
        new_tokens=stage.rollout.max_new_tokens,
        reward_models=reward_models(stage.rollout) if isinstance(ready.objective, RolloutObjective) else 0,
        eight_bit=stage.optim.state == "8bit",
        in_backward=stage.optim.in_backward,
        share_base=stage.rollout.share_base,
    )


def _method(ready: Assembled) -> Method:
    """What the objective itself says, which a user's own loss says too."""
    objective, rollout = ready.objective, ready.stage.rollout
    known = METHODS.get(objective.name)
    drawn = isinstance(objective, RolloutObjective)
    return Method(
        examples=objective.examples,
        reference="ref_logprobs" in objective.needs,
        scores=objective.reads == "scores",
        mismatched=objective.mismatches,
        ahead=objective.looks_ahead,
        group=rollout.group_size or (objective.group_size if isinstance(objective, RolloutObjective) else 1),
        epochs=rollout.epochs or (objective.rollout_epochs if isinstance(objective, RolloutObjective) else 1),
        critic=drawn and known is not None and known.critic,
        moving=objective.reference_every is not None,
    )


def _machine(ready: Assembled, model: Architecture) -> Machine:
    device, calibration = ready.built.device, ready.built.calibration
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Machine(
            torch.cuda.get_device_name(device), "cuda", max(free, total - torch.cuda.memory_reserved(device))
        )
    cpu = this_cpu()
    widths = Widths(model.hidden, model.inner, model.layers)
    rate = rate_of(calibration, widths, bf16=ready.built.dtype == torch.bfloat16)
    return replace(cpu, rates=None if rate is None else shared_rate(rate, SHARE_OF_OWN))


def repacker(ready: Assembled) -> Repack:
    """Return what tells what the stage's steps compute with so many tokens at once."""
    if isinstance(ready.objective, RolloutObjective):
        return _rollout_work(ready, ready.stage, ready.objective)
    shared = ready.built.model.sharing == "tree"
    rows = [_row(tree, shared=shared) for tree in ready.dataset.train]

    def work(micro_tokens: int) -> Work:
        def steps() -> Iterator[Sequence[Sequence[Row]]]:
            for step in ready.plan.steps():
                if micro_tokens == ready.plan.micro_tokens:
                    yield [[rows[i] for i in micro] for micro in step.micro_batches]
                else:
                    yield packed([rows[i] for micro in step.micro_batches for i in micro], micro_tokens)

        return Work.of_steps(steps(), ready.total_steps)

    return work


def _rollout_work(ready: Assembled, stage: Stage, objective: RolloutObjective) -> Repack:
    """Steps of the longest prompts, every completion as long as it may become."""
    plan = rollout_plan(stage, objective)
    longest = sorted((len(tree.prompt) for tree in ready.dataset.train), reverse=True)[: plan.examples]

    def work(micro_tokens: int) -> Work:
        rows = [
            part
            for prompt in longest
            for part in Row(
                prompt, (plan.max_new_tokens,) * plan.group_size, plan.max_new_tokens * plan.group_size
            ).cut(micro_tokens)
        ]
        step = packed(rows, micro_tokens)
        return Work.of_steps([step], ready.total_steps, prompts=plan.prompts, prompt=longest[0])

    return work


def _row(tree: Tree, *, shared: bool) -> Row:
    """A tree's sizes; the last completion of one with a label is another prompt's answer where it has no label."""
    own = [c for c in tree.completions if c.label is not None] or list(tree.completions)
    others = sum(len(c.tokens) for c in tree.completions) - sum(len(c.tokens) for c in own)
    again = 0 if shared else (len(own) - 1) * len(tree.prompt)
    sizes = tuple(len(c.tokens) for c in own)
    return Row(len(tree.prompt) + max(again, 0), sizes, sum(int(c.mask.sum()) for c in own), others)
