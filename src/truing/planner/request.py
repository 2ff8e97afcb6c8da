"""What `truing plan` is asked: a recipe, or a model and a method; and the plans that answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from truing.core.errors import InputError, RecipeError
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import Architecture, read_architecture
from truing.planner.machine import Machine
from truing.planner.methods import find_method
from truing.planner.plan import Plan, make_plan, table_settings
from truing.planner.rows import read_sizes
from truing.planner.setting import Base, DeviceKind, Row, Setting, Work, even_row, packed
from truing.recipe.schema import Recipe, Stage
from truing.rl.settings import RolloutSettings

EXAMPLES = 8
"""Rows of a step where nothing says how many: the trainer's own default."""

MICRO_TOKENS: dict[DeviceKind, int] = {"cpu": 4096, "cuda": 8192}
"""Tokens at once where nothing says: the trainer's own defaults."""

Deal = Callable[[int, int], Work]
"""The steps of a device with so many tokens at once, to which so many rows of each step are dealt."""

TABLE_METHODS = ("sft", "dpo", "kto", "reward", "ppo")


@dataclass(frozen=True, slots=True)
class Question:
    """A model and a method without a recipe."""

    model: Path
    method: str
    adapter: AdapterSettings | None
    base: Base | None
    """None: as the checkpoint is."""
    checkpointing: bool
    length: int
    examples: int
    micro_tokens: int | None
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan, and how its steps would be with other micro-batches, or dealt to several devices."""

    plan: Plan
    deal: Deal
    rows: str
    """Which rows were planned for."""
    examples: int
    """Rows of a step."""

    def repack(self, micro_tokens: int) -> Work:
        """The steps of one device."""
        return self.deal(micro_tokens, self.examples)


def answer(question: Question, machine: Machine | None, device: DeviceKind) -> Answer:
    """Plan what a question asks."""
    model = read_architecture(question.model)
    return _answer(model, question, _setting(model, question, device), machine)


def table(question: Question, machine: Machine | None) -> Iterator[tuple[str, str, Plan]]:
    """Yield the plan of each method with all weights, LoRA and QLoRA, on a GPU: (method, way, plan)."""
    model = read_architecture(question.model)
    for name in TABLE_METHODS:
        asked = replace(question, method=name)
        for way, setting in table_settings(_setting(model, asked, "cuda")):
            yield name, way, _answer(model, asked, setting, machine).plan


def recipe_answers(recipe: Recipe, machine: Machine | None, device: DeviceKind, length: int | None) -> Iterator[Answer]:
    """Plan every stage of a recipe; with `length` its rows are taken to be that long, and no data is read."""
    start: str | None = None
    for stage in recipe.stages:
        start = stage.model or start
        if start is None:
            raise RecipeError("the first stage names no model")
        yield _stage_answer(stage, Path(start), machine, device, length)


def _stage_answer(
    stage: Stage, folder: Path, machine: Machine | None, device: DeviceKind, length: int | None
) -> Answer:
    if not folder.exists():
        raise InputError(
            f"stage {stage.name}: there is no folder {folder}; a plan needs the model's config.json on this machine: "
            "give its path with --set model=PATH"
        )
    model = read_architecture(folder)
    name = str(stage.objective["use"])
    method, rollout = find_method(name), stage.rollout
    method = replace(method, group=rollout.group_size or method.group, epochs=rollout.epochs or method.epochs)
    asked: dict[str, Base] = {"fp32": "fp32", "bf16": "bf16"}
    setting = Setting(
        name,
        method,
        stage.adapter,
        asked.get(stage.precision.dtype, checkpoint_format(model)),
        device,
        stage.precision.gradient_checkpointing,
        (stage.batch.micro_tokens or MICRO_TOKENS[device]) if stage.data.packing else 1,
        rollout.max_new_tokens,
        reward_models(rollout) if method.rollouts else 0,
        stage.optim.state == "8bit",
        stage.optim.in_backward,
        rollout.share_base,
    )
    asked_rows = stage.batch.examples or (None if stage.batch.tokens else EXAMPLES)
    if length is not None:
        rows = [even_row(method, length, setting.new_tokens, method.group)]
        return _of_rows(model, setting, rows, asked_rows, stage, machine, f"rows of {length} tokens")
    rows = read_sizes(stage.data, name, method, folder)
    said = f"{len(rows)} rows of {', '.join(stage.data.paths)}, counted before training"
    return _of_rows(model, setting, rows, asked_rows, stage, machine, said)


def reward_models(rollout: RolloutSettings) -> int:
    """Rewards that are models: that of the stage before where none is named; a Python function has no weights."""
    named = [use for reward in rollout.rewards for use in reward.uses]
    return sum(".py:" not in use for use in named) if named else 1


def _of_rows(
    model: Architecture,
    setting: Setting,
    rows: Sequence[Row],
    examples: int | None,
    stage: Stage,
    machine: Machine | None,
    said: str,
) -> Answer:
    per_step = examples or _rows_of(stage.batch.tokens or 0, rows)
    steps = stage.optim.max_steps or max(1, round(stage.optim.epochs * len(rows) / per_step))
    if setting.method.rollouts:
        written = (setting.new_tokens,) * setting.method.group
        rows = [Row(row.prompt, written, sum(written)) for row in rows]
        steps = stage.optim.max_steps or steps * setting.method.epochs

    longest = sorted(rows, key=lambda row: -row.tokens)

    def deal(micro_tokens: int, share: int) -> Work:
        # The longest rows together: whatever order training takes them in, no step is heavier than this one.
        return _work(setting, [longest[:share], longest], share, micro_tokens, steps, stage.rollout.mini_batches)

    return _planned(model, setting, deal, machine, said, per_step)


def _rows_of(tokens: int, rows: Sequence[Row]) -> int:
    """How many rows so many tokens are on average."""
    mean = sum(row.tokens for row in rows) / max(len(rows), 1)
    return max(1, round(tokens / max(mean, 1.0)))


def _work(
    setting: Setting, groups: Sequence[Sequence[Row]], per_step: int, micro_tokens: int, steps: int, minis: int
) -> Work:
    """Heaviest step first, then all rows as one, for the averages."""
    cut = [_cut(setting, group, micro_tokens) for group in groups]
    prompts = per_step * minis if setting.method.rollouts else 0
    first = max((row.prompt for row in groups[0]), default=1)
    most = Work.of_steps([packed(cut[0], micro_tokens)], steps, prompts=prompts, prompt=first)
    share = per_step / max(len(groups[-1]), 1)
    return replace(
        most,
        tokens=share * sum(row.tokens for row in cut[-1]),
        targets=share * sum(row.targets for row in cut[-1]),
        attended=share * sum(row.attended for row in cut[-1]),
    )


def _cut(setting: Setting, rows: Sequence[Row], micro_tokens: int) -> list[Row]:
    """Spread a rollout's prompts over micro-batches; a comparison stays whole, however long it is."""
    if not setting.method.rollouts:
        return list(rows)
    return [part for row in rows for part in row.cut(micro_tokens)]


def _answer(model: Architecture, question: Question, setting: Setting, machine: Machine | None) -> Answer:
    row = even_row(setting.method, question.length, setting.new_tokens, setting.method.group)

    def deal(micro_tokens: int, share: int) -> Work:
        return _work(setting, [[row] * share], share, micro_tokens, 1, 1)

    said = f"rows of {question.length} tokens, half prompt and half completion"
    return _planned(model, setting, deal, machine, said, question.examples)


def _planned(
    model: Architecture, setting: Setting, deal: Deal, machine: Machine | None, said: str, examples: int
) -> Answer:
    plan = make_plan(model, setting, lambda micro_tokens: deal(micro_tokens, examples), machine)
    return Answer(plan, deal, said, examples)


def _setting(model: Architecture, question: Question, device: DeviceKind) -> Setting:
    method = find_method(question.method)
    return Setting(
        question.method,
        method,
        question.adapter,
        question.base or checkpoint_format(model),
        device,
        question.checkpointing,
        question.micro_tokens or MICRO_TOKENS[device],
        question.new_tokens,
        1 if method.rollouts else 0,
    )


def checkpoint_format(model: Architecture) -> Base:
    """The format that training keeps of a checkpoint's, where it is fast in it."""
    return "bf16" if model.dtype in ("bfloat16", "float16") else "fp32"
