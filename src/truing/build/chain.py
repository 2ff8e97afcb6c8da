"""Runs a recipe: its stages one after the other, each from the last one's result."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from truing.build.environment import positions_of
from truing.build.forgetting import check_text
from truing.build.judge import check_judge, with_judge_stage
from truing.build.load_result import adapter_base
from truing.build.policy import Start
from truing.build.preview import show_batch, show_first
from truing.build.rollout_stage import check_rewards, rollout_objective, with_reward_stages
from truing.build.stage import Assembled, Probe, assemble, introduce, run_stage
from truing.core.errors import DataError, RecipeError, RunError
from truing.data.dataset import check_sources
from truing.data.examples import Judgement
from truing.models.calibration import Calibration
from truing.models.nf4 import check_installed as check_packing
from truing.objectives.policy_gradient import RolloutObjective
from truing.objectives.registry import create
from truing.recipe.load import dump, load_recipe
from truing.recipe.schema import Recipe, Stage
from truing.rl.settings import RolloutSettings
from truing.training.disk import on_disk
from truing.training.manifest import damage
from truing.training.moments import check_state
from truing.training.progress import Reporter
from truing.training.ranks import ALONE, Ranks
from truing.training.run_directory import OnlookersRun, RunDirectory, fresh_staging, publish
from truing.training.trackers.registry import check_installed


def run(recipe: Recipe, output: Path, reporter: Reporter, probe: Probe | None = None, ranks: Ranks = ALONE) -> Path:
    """Run every stage into `output`; return the folder of the last result.

    The first stage is assembled, and every later stage's data and objective are checked, before anything is written.
    A probe is called with the policy whenever a stage is evaluated; what it returns goes into the row of metrics.jsonl.
    """
    if ranks.first:
        check_stages(recipe)
    ranks.barrier()
    first = assemble(recipe.stages[0], _first_start(recipe), None, reporter, ranks)
    directory = RunDirectory.create(output) if ranks.first else OnlookersRun(output)
    try:
        return _run_stages(recipe, directory, first, reporter, probe, ranks)
    finally:
        directory.close()


def resume(output: Path, reporter: Reporter, ranks: Ranks = ALONE) -> Path:
    """Continue an interrupted run: finished stages are kept, the one in progress goes on from its last checkpoint.

    One that is finished stays as it is: who resumes after every interruption cannot know that the last came too late.
    The number of ranks may be another one than before.
    """
    directory = (RunDirectory if ranks.first else OnlookersRun).open(output)
    directory.lock()
    try:
        recipe = load_recipe(output / "recipe.yaml")
        if directory.is_finished():
            reporter.say(f"{output} is finished: its result is in {output / 'final'}")
            return output / "final"
        check_installed(tracker for stage in recipe.stages for tracker in stage.trackers)
        return _run_stages(recipe, directory, None, reporter, None, ranks)
    finally:
        directory.close()


def preview(recipe: Recipe, reporter: Reporter) -> None:
    """Check recipe, data and model, show the first batch as it will be trained, and write nothing."""
    check_stages(recipe)
    ready = assemble(recipe.stages[0], _first_start(recipe), None, reporter)
    introduce(ready, reporter)
    show_batch(ready, reporter)
    for stage in recipe.stages[1:]:
        reporter.say(f"{stage.name}: {stage.objective['use']} follows, from the result of the stage before")
    reporter.say("dry run: nothing was trained or written")


def _run_stages(
    recipe: Recipe,
    directory: RunDirectory,
    first: Assembled | None,
    reporter: Reporter,
    probe: Probe | None,
    ranks: Ranks,
) -> Path:
    several = len(recipe.stages) > 1
    if not (directory.path / "recipe.yaml").is_file():
        directory.write_text("recipe.yaml", dump(_explicit(recipe, directory.path)))
    ranks.barrier()
    for place in places(recipe, directory.path):
        if (place.folder / "final").is_dir():
            first = None
            continue
        ready = first or assemble(place.stage, place.start, calibration_of(place.folder), reporter, ranks)
        first = None
        introduce(ready, reporter)
        show_first(ready, reporter)
        stage_run = directory
        if several:
            stage_run = _open_stage(place.folder) if ranks.first else OnlookersRun(place.folder)
        try:
            run_stage(recipe, ready, stage_run, reporter, probe)
        finally:
            if several:
                stage_run.close()
    final = directory.path / "final"
    if several and ranks.first:
        _copy_final(place.folder / "final", final)
    ranks.barrier()
    return final


@dataclass(frozen=True, slots=True)
class Place:
    """A stage of a run, where it is written, and where it starts."""

    stage: Stage
    folder: Path
    start: Start


def places(recipe: Recipe, directory: Path) -> Iterator[Place]:
    """Yield the stages of a run in their order, each when those before it are finished; it ends before one that waits.

    Raises RunError where a result is damaged.
    """
    start = _first_start(recipe)
    scorers: dict[str, Path | None] = {}
    for index, stage in enumerate(recipe.stages):
        folder = directory / f"{index + 1}-{stage.name}" if len(recipe.stages) > 1 else directory
        own = index > 0 and stage.model is not None
        here = Start(str(stage.model), _adapter_start(recipe, index)) if own else start
        ready = with_reward_stages(stage, scorers) if _by_rollouts(stage) else stage
        yield Place(with_judge_stage(ready, scorers), folder, here)
        result = _finished(folder)
        if result is None:
            return
        if _scores(stage):
            scorers[stage.name] = (folder / "final").resolve()
        else:
            start = result


def _scores(stage: Stage) -> bool:
    """Whether a stage makes a reward model: the policy of the stages after it is that of the stages before."""
    return create(stage.objective).reads == "scores"


def _by_rollouts(stage: Stage) -> bool:
    """Whether a stage learns from completions of its own."""
    return create(stage.objective).examples == "prompt"


def _first_start(recipe: Recipe) -> Start:
    stage = recipe.stages[0]
    if stage.model is None:
        raise RunError("the first stage names no model")
    return Start(stage.model, _adapter_start(recipe, 0))


def _adapter_start(recipe: Recipe, index: int) -> Path | None:
    adapter = recipe.stages[index].adapter
    return Path(adapter.start) if adapter is not None and adapter.start is not None else None


def check_stages(recipe: Recipe) -> None:
    """Find in the first second what would otherwise stop a chain after hours."""
    if all(stage.rollout != RolloutSettings() and not _by_rollouts(stage) for stage in recipe.stages):
        raise RecipeError(
            f"rollout: is set, but {recipe.stages[-1].objective['use']} learns from rows, not from completions of its "
            "own; leave it out, or take a method that does (ppo, grpo, rloo, reinforce, online_dpo, best_of_n)"
        )
    model = ""
    scorers: dict[str, Path | None] = {}
    for stage in recipe.stages:
        model = stage.model or model
        objective = create(stage.objective)
        check_installed(stage.trackers)
        check_state(stage.optim)
        if stage.adapter is not None and stage.adapter.base is not None:
            check_packing()
        examples = check_sources(stage.data, objective.examples, needed_by=objective.name)
        if objective.reads != "scores":
            check_text(stage.forgetting)
            check_judge(stage, tuple(scorers))
        if objective.reads == "scores":
            scorers[stage.name] = None
        if isinstance(objective, RolloutObjective):
            rollout_objective(stage, objective)
            check_rewards(with_reward_stages(stage, scorers), tuple(scorers), examples)
        labels = [example.label for example in examples if isinstance(example, Judgement)]
        if labels:
            objective.for_labels(labels.count(True), labels.count(False))
        positions = positions_of(model)
        if positions is not None and stage.data.max_length > positions:
            raise DataError(
                f"stage {stage.name}: data.max_length is {stage.data.max_length}, but {model} has positions for "
                f"{positions} tokens; lower data.max_length"
            )


def _explicit(recipe: Recipe, output: Path) -> Recipe:
    """Write out the objectives' defaults too."""
    stages = []
    for stage in recipe.stages:
        fields = create(stage.objective).model_dump(mode="json")
        stages.append(stage.model_copy(update={"objective": {"use": stage.objective["use"], **fields}}))
    return Recipe(output=str(output), stages=tuple(stages))


def _open_stage(folder: Path) -> RunDirectory:
    if (folder / "recipe.yaml").is_file():
        run_directory = RunDirectory.open(folder)
        run_directory.lock()
        return run_directory
    return RunDirectory.create(folder)


def _finished(folder: Path) -> Start | None:
    """Where a finished stage leaves the next one to start; None while it is not finished."""
    final = folder / "final"
    if not final.is_dir():
        return None
    problem = damage(final)
    if problem:
        raise RunError(
            f"{final} is damaged ({problem}); delete that folder, and it is written again from the last checkpoint"
        )
    config = final / "adapter_config.json"
    if not config.is_file():
        return Start(str(final.resolve()))
    return Start(str(adapter_base(final)), final.resolve())


def calibration_of(folder: Path) -> Calibration | None:
    """The choices an interrupted run made: made anew they could fall otherwise, and change the last digits."""
    if not (folder / "environment.json").is_file():
        return None
    try:
        return Calibration(**RunDirectory(folder).read_object("environment.json")["calibration"])
    except (LookupError, TypeError) as failure:
        raise RunError(
            f"{folder / 'environment.json'} is damaged: it has no choices to go on with ({failure!r})"
        ) from None


def _copy_final(source: Path, target: Path) -> None:
    staging = fresh_staging(target)
    with on_disk(target):
        shutil.copytree(source, staging, dirs_exist_ok=True)
        publish(staging, target)
