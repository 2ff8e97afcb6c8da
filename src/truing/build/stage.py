"""Wires one stage: model, data, objective, reference, source, trainer, result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from truing.build.card_facts import gather
from truing.build.company import Company
from truing.build.facts import check_unchanged, write_facts
from truing.build.following import begin_trackers
from truing.build.forgetting import Forgetting, GeneralText, encode_text
from truing.build.judge import Asked, HeldOutJudge, asked_prompts
from truing.build.model_card import model_card
from truing.build.planning import forecast, remedy, repacker, tell
from truing.build.policy import POLICY, REFERENCE, BuiltPolicy, Start, build_policy
from truing.build.preconditions import complaints_before
from truing.build.result import write_final
from truing.build.rollout_stage import (
    check_room,
    rollout_objective,
    rollout_plan,
    total_steps,
)
from truing.build.samples import Sampler
from truing.build.server import check_server
from truing.build.steps import Moved, by_rollouts, by_rows, sizes_of
from truing.build.watch import check_guards, guards_of
from truing.core.errors import DataError, OutOfMemory, RecipeError, RunError
from truing.core.text import harmless
from truing.core.trees import Tree
from truing.data.dataset import Dataset, load
from truing.data.packing import StepPlan
from truing.models.calibration import Calibration
from truing.models.language_model import LanguageModel
from truing.objectives.base import Objective
from truing.objectives.policy_gradient import RolloutObjective
from truing.objectives.registry import create
from truing.planner.plan import Plan as Forecast
from truing.planner.plan import Repack
from truing.recipe.schema import Recipe, Stage
from truing.training import checkpoint
from truing.training.backward_optimizer import optimizer_for
from truing.training.checkpoint import Checkpoint
from truing.training.memory_failure import naming
from truing.training.moving_reference import MovingReference
from truing.training.progress import Reporter, peak_memory_bytes
from truing.training.ranks import ALONE, Ranks
from truing.training.run_directory import RunDirectory
from truing.training.settings import BatchSettings, OptimSettings
from truing.training.trackers.followed import Trackers
from truing.training.trainer import Plan, Trainer

DEFAULT_EXAMPLES = 8
MICRO_TOKENS = 8192
MICRO_TOKENS_ON_CPU = 4096
LORA_RATE = 10.0
"""How much higher LoRA's rate is than full weights' (Schulman et al. 2025, "LoRA Without Regret")."""


Probe = Callable[[LanguageModel], Mapping[str, float]]
"""Looks at the policy while it is trained, and returns figures."""


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A stage ready to run; nothing has been written yet."""

    stage: Stage
    objective: Objective
    built: BuiltPolicy
    dataset: Dataset
    plan: StepPlan
    total_steps: int
    optim: OptimSettings
    general: GeneralText | None = None
    """What forgetting is measured on."""
    asked: tuple[Asked, ...] = ()
    """What the held-out judge is asked about."""
    forecast: Forecast | None = None
    """Predicted memory and time; None for a model that the planner does not know."""

    @property
    def repack(self) -> Repack:
        """What the steps compute with another number of tokens at once."""
        return repacker(self)

    @property
    def lora(self) -> bool:
        return self.built.adapters is not None


def assemble(
    stage: Stage, start: Start, calibration: Calibration | None, reporter: Reporter, ranks: Ranks = ALONE
) -> Assembled:
    """Check and load everything that a stage needs."""
    objective = create(stage.objective)
    if isinstance(objective, RolloutObjective):
        objective = rollout_objective(stage, objective)
    optim = _rates(stage, objective, reporter)
    moving = objective.reference_every is not None
    if moving and stage.adapter is None:
        raise RecipeError(
            f"objective {objective.name} moves its reference, which takes an adapter: adapter: {{use: lora}}"
        )
    with naming(f"while {start.model} was loaded"):
        scores = objective.reads == "scores"
        built = build_policy(stage, start, calibration, reporter, scores=scores, moving=moving, ranks=ranks)
    stage = stage.model_copy(update={"batch": _batch(stage.batch, built.device)})
    if built.model.max_positions is not None and stage.data.max_length > built.model.max_positions:
        raise DataError(
            f"data.max_length is {stage.data.max_length}, but {start.model} has positions for "
            f"{built.model.max_positions} tokens; lower data.max_length"
        )
    dataset = load(
        stage.data,
        objective.examples,
        built.loaded.tokenizer,
        stage.template,
        built.loaded.end_tokens,
        _counter(reporter, "tokenise"),
        needed_by=objective.name,
        mismatches=objective.mismatches,
        groups=objective.groups,
    )
    reporter.end()
    if objective.examples == "judgement":
        labels = [tree.completions[0].label for tree in dataset.train]
        objective = objective.for_labels(labels.count(True), labels.count(False))
    _refuse_long(stage, built)
    _check_frugal_alone(stage, built.company)
    plan = _plan(stage, built, dataset.train, optim)
    _check_one_backward(stage, objective, plan)
    steps = plan.count()
    if isinstance(objective, RolloutObjective):
        trees = (*dataset.train, *dataset.held_out)
        check_room(trees, stage.rollout.max_new_tokens, built.model.max_positions, start.model)
        check_server(stage, built)
        steps = total_steps(stage, rollout_plan(stage, objective), len(dataset.train))
    general = encode_text(stage.forgetting, built, dataset.template, reporter)
    asked = asked_prompts(stage, built, dataset)
    check_guards(stage, dataset, judged=bool(asked))
    ready = Assembled(stage, objective, built, dataset, plan, steps, optim, general, asked)
    return replace(ready, forecast=forecast(ready))


def _refuse_long(stage: Stage, built: BuiltPolicy) -> None:
    """Weights that are cut over ranks allow one pass a micro-batch, for which some rows may be too long."""
    exact = built.model.exact_length
    if built.company.cuts and exact is not None and stage.data.max_length > exact:
        raise RecipeError(
            f"data.max_length is {stage.data.max_length}, and {built.start.model} computes rows of more than {exact} "
            "tokens one by one, which weights that are cut over processes do not allow; lower it, or set "
            "parallel.shard: 1"
        )


def run_stage(
    recipe: Recipe, ready: Assembled, run: RunDirectory, reporter: Reporter, probe: Probe | None = None
) -> Start:
    """Train a stage from the start, or from its last checkpoint if it has one; return where the next one starts."""
    with trainer_of(ready, run, reporter, probe) as trainer, trainer.trackers:
        _fit(recipe, ready, trainer, run, reporter)
        trainer.optimizer.zero_grad()  # room for the result, which is read back
        card = model_card(gather(ready, run)) if ready.built.company.ranks.first else ""
        prompts = ready.dataset.held_out or ready.dataset.train
        return write_final(ready.built, ready.dataset.template, prompts, run.path, card, reporter)


@contextmanager
def trainer_of(ready: Assembled, run: RunDirectory, reporter: Reporter, probe: Probe | None) -> Iterator[Trainer]:
    """Wire what makes a stage's steps, compute what they need ahead, and let go of it all at the end."""
    with ExitStack() as closing:
        judge = HeldOutJudge.of(ready.stage, ready.built, ready.asked)
        if judge is not None:
            closing.callback(judge.close)
        trainer = _trainer(ready, run, reporter, judge, probe)
        closing.callback(trainer.source.close)
        yield trainer


def _fit(recipe: Recipe, ready: Assembled, trainer: Trainer, run: RunDirectory, reporter: Reporter) -> None:
    ranks = ready.built.company.ranks
    saved, complaints = checkpoint.load_latest(trainer.checkpoints, ranks)
    for complaint in complaints:
        reporter.warn(complaint)
    untrained = saved is None and ready.stage.name == recipe.stages[0].name
    if ranks.first:
        begin_trackers(ready, trainer, 0 if saved is None else saved.step, untrained)
        checkpoint.discard_after(trainer.checkpoints, 0 if saved is None else saved.step)
    if saved is not None:
        check_unchanged(ready, run)
        reporter.say(f"resuming {run.path} after step {saved.step} of {ready.total_steps}")
        _restore(trainer, saved)
    else:
        write_facts(ready, run, trainer.optimizer.parameter_count)
        trainer.forget()
    try:
        trainer.fit(complaints_before(ready.stage, ready.built, ready.dataset))
    except OutOfMemory as failure:
        raise OutOfMemory(f"{failure}{remedy(ready.forecast, ready.repack)}") from failure.__cause__


def _restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Go back to a checkpoint; one that its manifest calls whole may still be of another program, or made up."""
    try:
        trainer.restore(saved)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as failure:
        raise RunError(
            f"the checkpoint of step {saved.step} in {trainer.checkpoints} is not one of this run: {failure!r}; delete "
            "it, and the run goes on from the one before"
        ) from failure


def introduce(ready: Assembled, reporter: Reporter) -> None:
    """Say in a few lines what is about to be trained on what."""
    stage, built, report = ready.stage, ready.built, ready.dataset.report
    how = stage.adapter.summary if stage.adapter is not None else "full weights"
    dtype = str(built.dtype).removeprefix("torch.")
    reporter.say(f"{stage.name}: {ready.objective.name} on {built.start.model}, {how}, {dtype}, {built.device}")
    for line in report.lines():
        reporter.say(f"  {harmless(line)}")
    tell(ready.forecast, ready.repack, reporter)
    if built.company.ranks.several:
        reporter.say(f"  {built.company.sentence}")
    if isinstance(ready.objective, RolloutObjective):
        _introduce_rollouts(ready, ready.objective, reporter)
        return
    rows = ready.plan.rows_seen()
    reporter.say(
        f"  {ready.total_steps} steps, {rows:,} rows ({rows / len(ready.dataset.train):.2g} passes), "
        f"peak rate {ready.optim.lr:g}; {built.calibration.sentence}"
    )


def _introduce_rollouts(ready: Assembled, objective: RolloutObjective, reporter: Reporter) -> None:
    plan = rollout_plan(ready.stage, objective)
    steps = plan.epochs * plan.mini_batches
    rewards = ", ".join(" + ".join(reward.uses) for reward in ready.stage.rollout.rewards)
    reporter.say(
        f"  {ready.total_steps} steps, {steps} a rollout of {plan.prompts} prompts x {plan.group_size} completions of "
        f"up to {plan.max_new_tokens} tokens; peak rate {ready.optim.lr:g}; {ready.built.calibration.sentence}"
    )
    reporter.say(f"  rewards: {harmless(rewards)}")
    server = ready.stage.rollout.server
    if server is not None:
        what = "the adapter" if ready.lora else "the weights"
        reporter.say(f"  sampled on {server.url}, which is given {what} before each rollout")


def _rates(stage: Stage, objective: Objective, reporter: Reporter) -> OptimSettings:
    """Fill in the default rate, and warn about one outside the method's range."""
    factor = LORA_RATE if stage.adapter is not None else 1.0
    lr = stage.optim.lr if stage.optim.lr is not None else objective.learning_rate * factor
    low, high = (bound * factor for bound in objective.learning_rate_range)
    if not low <= lr <= high:
        reporter.warn(
            f"optim.lr {lr:g} is outside the usual range of {objective.name} "
            f"{'with LoRA' if stage.adapter else 'with full weights'} ({low:g} to {high:g})"
        )
    return stage.optim.model_copy(update={"lr": lr})


def _batch(asked: BatchSettings, device: torch.device) -> BatchSettings:
    """Fill in what the recipe leaves open."""
    examples = asked.examples or (DEFAULT_EXAMPLES if asked.tokens is None else None)
    micro_tokens = asked.micro_tokens or (MICRO_TOKENS_ON_CPU if device.type == "cpu" else MICRO_TOKENS)
    return asked.model_copy(update={"examples": examples, "micro_tokens": micro_tokens})


def _plan(stage: Stage, built: BuiltPolicy, trees: Sequence[Tree], optim: OptimSettings) -> StepPlan:
    batch = stage.batch
    assert batch.micro_tokens is not None  # filled in by `_batch`
    return StepPlan(
        sizes=sizes_of(built, trees),
        examples=batch.examples,
        tokens=batch.tokens,
        micro_tokens=batch.micro_tokens if stage.data.packing else 1,
        seed=stage.seed,
        shuffle=stage.data.shuffle,
        max_steps=optim.max_steps,
        epochs=optim.epochs,
    )


def _check_one_backward(stage: Stage, objective: Objective, plan: StepPlan) -> None:
    """A weight that moves in the backward pass has its whole gradient there only where a step has one."""
    if not stage.optim.in_backward:
        return
    if isinstance(objective, RolloutObjective):
        raise RecipeError(
            f"optim.in_backward needs steps of one micro-batch, and those of {objective.name} are cut as completions "
            "come; leave it out"
        )
    cut = max((step for step in plan.steps()), key=lambda step: len(step.micro_batches))
    if len(cut.micro_batches) > 1:
        tokens = sum(plan.sizes[row] for micro in cut.micro_batches for row in micro)
        raise RecipeError(
            f"optim.in_backward needs steps of one micro-batch, and some here have {len(cut.micro_batches)}; raise "
            f"batch.micro_tokens to {tokens:,} or more, or lower batch.examples"
        )


def _check_frugal_alone(stage: Stage, company: Company) -> None:
    """Refuse what saves an optimizer's memory where several processes have other ways to."""
    if stage.optim.in_backward and company.ranks.several:
        raise RecipeError(
            "optim.in_backward moves a weight before other processes have added their gradient to it; leave it out, or "
            "train in one process"
        )
    if stage.optim.state == "8bit" and company.cuts:
        raise RecipeError(
            "optim.state: 8bit needs whole weights on each process; leave it out, or set parallel.shard: 1"
        )


def _trainer(
    ready: Assembled, run: RunDirectory, reporter: Reporter, judge: HeldOutJudge | None, probe: Probe | None
) -> Trainer:
    stage, built, company = ready.stage, ready.built, ready.built.company
    of_rollouts = isinstance(ready.objective, RolloutObjective)
    moved = by_rollouts(ready, run, reporter) if of_rollouts else by_rows(ready, run, reporter)
    sampler = None if built.model.scores else Sampler.of(built, ready.dataset, stage)
    return Trainer(
        policy=moved.trained,
        objective=ready.objective,
        source=moved.source,
        optimizer=optimizer_for(moved.groups, ready.optim, cut=company.cuts),
        plan=Plan(
            optim=ready.optim,
            checkpoint=stage.checkpoint,
            evaluate_every=stage.evaluation.every or max(1, ready.total_steps // 5),
            sample_every=stage.samples.every,
            vocab_size=built.model.vocab_size,
            seed=stage.seed,
        ),
        run=run,
        reporter=reporter,
        trackers=Trackers(run, reporter),
        guards=guards_of(ready),
        evaluate=_measures(moved, judge, probe, company),
        at_start=None if judge is None else company.by_first(judge),
        moving=_moving(ready),
        peak_memory=partial(torch.cuda.max_memory_allocated, built.device)
        if built.device.type == "cuda"
        else peak_memory_bytes,
        at_end=_forgetting(ready, run, reporter),
        before_checkpoint=moved.before_checkpoint,
        sample=None if sampler is None else company.by_first(sampler),
        ranks=company.ranks,
    )


def _forgetting(ready: Assembled, run: RunDirectory, reporter: Reporter) -> Callable[[], Mapping[str, float]] | None:
    """What looks at general text; it takes its first look now."""
    general, company = ready.general, ready.built.company
    if general is None:
        return None
    with company.whole():
        if not company.ranks.first:
            return company.by_first(dict)
        return company.by_first(Forgetting(general, ready.built, ready.plan.micro_tokens, run, reporter))


def _measures(
    moved: Moved, judge: HeldOutJudge | None, probe: Probe | None, company: Company
) -> Callable[[Mapping[str, float]], Mapping[str, float]] | None:
    """Evaluate as the recipe says, have the answers judged, and probe the policy; None where nothing is measured."""
    if moved.evaluate is None and judge is None and probe is None:
        return None

    def looked() -> dict[str, float]:
        found = dict(judge()) if judge is not None else {}
        if probe is not None:
            with moved.policy.active():
                found |= probe(moved.policy.model)
        return found

    def measured(memory: Mapping[str, float]) -> Mapping[str, float]:
        found = dict(moved.evaluate(memory)) if moved.evaluate is not None else {}
        return found if judge is None and probe is None else found | company.by_first(looked)()

    return measured


def _moving(ready: Assembled) -> MovingReference | None:
    every, adapters = ready.objective.reference_every, ready.built.adapters
    if every is None or adapters is None:
        return None
    return MovingReference(adapters, POLICY, REFERENCE, every, ready.built.company.cuts)


def _counter(reporter: Reporter, what: str) -> Any:
    """A callback `(done, total)` that opens its bar at the first call."""
    begun = False

    def report(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            reporter.begin(what, total)
            begun = True
        reporter.advance(done)

    return report
