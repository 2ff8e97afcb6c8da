"""What is compared: a recipe for each method, or the recipes that a person gives, all from one start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truing.build.chain import check_stages
from truing.build.environment import positions_of
from truing.build.load_result import adapter_base, is_scorer, result_folder
from truing.compare.pool import Chosen, Pile, Split, check_fits, choose, keys_of, read_pile, written_settings
from truing.compare.request import Request
from truing.core.errors import InputError, RecipeError, RunError
from truing.data.settings import DataSettings
from truing.models.loading import load_tokenizer
from truing.models.lora.peft_config import read_config
from truing.models.nf4 import storage_of
from truing.objectives.policy_gradient import RolloutObjective
from truing.objectives.registry import create
from truing.recipe.load import load_recipe, recipe_from
from truing.recipe.schema import Recipe, Stage
from truing.training.settings import OptimSettings

MOST_TOKENS = 1024
ENDLESS = 10**9


@dataclass(frozen=True, slots=True)
class Beginning:
    """What every entry starts from, and is compared with."""

    model: str
    """The base: a folder or hub id."""
    adapter: Path | None
    template: str | None
    note: str = ""

    @property
    def result(self) -> str:
        """What opens it: the adapter folder, or the model."""
        return str(self.adapter or self.model)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that is compared."""

    name: str
    recipe: Recipe
    trained_on: tuple[str, ...] = ()
    """In words, a phrase a stage."""

    @property
    def objective(self) -> Any:
        """Of the last stage, whose result is what is measured."""
        return create(self.recipe.stages[-1].objective)

    @property
    def by_rollouts(self) -> bool:
        """Whether the last stage learns from completions of its own."""
        return isinstance(self.objective, RolloutObjective)

    def with_seed(self, seed: int) -> Recipe:
        """The recipe under a seed."""
        stages = tuple(stage.model_copy(update={"seed": seed}) for stage in self.recipe.stages)
        return self.recipe.model_copy(update={"stages": stages})

    def with_steps(self, steps: int) -> Entry:
        """The same with so many optimizer steps; of one stage alone."""
        (stage,) = self.recipe.stages
        optim = OptimSettings.model_validate({**stage.optim.model_dump(), "max_steps": steps})
        stages = (stage.model_copy(update={"optim": optim}),)
        return replace(self, recipe=self.recipe.model_copy(update={"stages": stages}))


def entries_of(request: Request) -> tuple[Beginning, tuple[Entry, ...]]:
    """Build a recipe for every method, or read those that are given."""
    if request.recipes:
        return _from_recipes(request)
    beginning = _beginning(request)
    return beginning, tuple(_from_method(method, request, beginning) for method in request.methods)


def _beginning(request: Request) -> Beginning:
    adapter = None
    model = str(request.model)
    if request.start is not None:
        run = Path(request.start)
        if not run.exists():
            raise RunError(f"--start: there is no run or model folder {run}")
        if is_scorer(run):
            raise RunError(f"--start {run} is a reward model; give what writes completions")
        folder = result_folder(run).resolve()
        base = adapter_base(run)
        model, adapter = (base, folder) if base is not None else (str(folder), None)
    if adapter is not None and request.adapter == "none":
        raise InputError(
            f"--start {request.start} is an adapter, and --adapter none trains all weights; merge it first "
            f"(truing merge {request.start}) and give the merged folder as --model"
        )
    template = request.template or _template_of_run(request.start)
    if template is not None:
        return Beginning(_absolute(model), adapter, template)
    own = load_tokenizer(adapter or model).chat_template
    note = "" if own else "the tokenizer has no chat template, so conversations are put into the plain one"
    return Beginning(_absolute(model), adapter, None if own else "plain", note)


def _template_of_run(start: str | None) -> str | None:
    """The template that a run's last stage named: what begins with its result goes on in the same words."""
    recipe = None if start is None else Path(start) / "recipe.yaml"
    return load_recipe(recipe).stages[-1].template if recipe is not None and recipe.is_file() else None


def _absolute(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def _from_method(method: str, request: Request, beginning: Beginning) -> Entry:
    objective = create({"use": method})
    length = longest_row(request, beginning.model)
    optim = {} if request.rates is None or method not in request.rates else {"lr": request.rates[method]}
    values: dict[str, Any] = {
        "model": beginning.model,
        "template": beginning.template,
        "adapter": _adapter(request, beginning),
        "objective": {"use": method},
        "data": {"path": list(request.data), "max_length": length, "limit": request.limit},
        "optim": optim,
    }
    if isinstance(objective, RolloutObjective):
        if request.reward is None:
            raise InputError(
                f"{method} learns from completions of its own, which something has to score: give --reward with a "
                "reward model's run or a function FILE.py:FN, or compare recipes with a reward stage before it"
            )
        values["data"]["max_length"] = min(length, room_for_prompts(request, beginning.model))
        values["rollout"] = {
            "rewards": [request.reward],
            "max_new_tokens": request.max_new_tokens,
            "reward_timeout": request.reward_timeout,
        }
    return Entry(method.rpartition(":")[2], recipe_from(values))


def longest_row(request: Request, model: str) -> int:
    """Tokens of a row at most."""
    positions = positions_of(model) or ENDLESS
    if request.max_length is not None and request.max_length > positions:
        raise InputError(
            f"--max-length {request.max_length} is more than the {positions} positions of {model}; lower it"
        )
    return request.max_length or min(MOST_TOKENS, positions)


def room_for_prompts(request: Request, model: str) -> int:
    """Tokens of a prompt that leave room for what is written behind it."""
    positions = positions_of(model) or ENDLESS
    if positions - request.max_new_tokens < 2:
        raise InputError(
            f"--max-new-tokens {request.max_new_tokens} leaves no room for a prompt in the {positions} positions of "
            f"{model}; lower it"
        )
    return positions - request.max_new_tokens


def _adapter(request: Request, beginning: Beginning) -> Any:
    if request.adapter == "none":
        return "none"
    base = "nf4" if request.adapter == "qlora" else None
    if beginning.adapter is None:
        return {"use": "lora", "base": base}
    shape = read_config(beginning.adapter)
    return {
        "use": "lora",
        "start": str(beginning.adapter),
        "rank": shape.rank,
        "alpha": shape.alpha,
        "rslora": shape.rslora,
        "dora": shape.dora,
        "base": base or storage_of(beginning.adapter),
    }


def _from_recipes(request: Request) -> tuple[Beginning, tuple[Entry, ...]]:
    entries = []
    for path in request.recipes:
        entry = Entry(Path(path).stem, load_recipe(Path(path)))
        if request.budget is not None and len(entry.recipe.stages) > 1:
            raise RecipeError(f"{path} is a chain, whose stages say their own steps; leave --budget out")
        entries.append(entry)
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two recipes are called {twice}; give their files different names")
    found = [_beginning_of(entry.recipe) for entry in entries]
    for path, other in zip(request.recipes, found, strict=True):
        if other != found[0]:
            raise RecipeError(
                f"{path} does not start like {request.recipes[0]}: {_told(other)} against {_told(found[0])}; what is "
                "compared has one start, to be measured from"
            )
    return found[0], tuple(entries)


def _beginning_of(recipe: Recipe) -> Beginning:
    first = recipe.stages[0]
    adapter = first.adapter.start if first.adapter is not None else None
    return Beginning(str(first.model), None if adapter is None else Path(adapter), recipe.stages[-1].template)


def _told(beginning: Beginning) -> str:
    return f"{beginning.result} with template {beginning.template or 'of its tokenizer'}"


@dataclass(frozen=True, slots=True)
class Stock:
    """All data of a comparison."""

    by_settings: Mapping[str, Pile]
    """By what tells whether two settings read the same rows."""
    split: Split

    @property
    def piles(self) -> tuple[Pile, ...]:
        return tuple(self.by_settings.values())

    def of(self, data: DataSettings) -> list[Pile]:
        """The files of a stage."""
        return [self.by_settings[_identity(one)] for one in _files(data)]


def stock_of(entries: Sequence[Entry], request: Request) -> Stock:
    """Read every file that any stage names, once, check that each stage finds something in them, and split."""
    known: dict[str, Pile] = {}
    for entry in entries:
        for stage in entry.recipe.stages:
            piles = [_known(one, known) for one in _files(stage.data)]
            check_fits(f"{entry.name}: {stage.objective['use']}", create(stage.objective).examples, piles)
    return Stock(known, Split.of(tuple(known.values()), request.held_out, request.evaluate_on))


def with_written_data(entries: Sequence[Entry], stock: Stock, folder: Path) -> tuple[Entry, ...]:
    """Write the training rows of every stage into `folder`, the same rows once, and let the recipes read those."""
    written: dict[str, Path] = {}
    found = []
    for entry in entries:
        stages, phrases = [], []
        for stage in entry.recipe.stages:
            own = stock.of(stage.data)
            chosen = choose(own, create(stage.objective).examples, keys_of(own) - stock.split.held_out)
            if not chosen.examples:
                raise InputError(f"{entry.name}: no row is left to train on; all its prompts are held out")
            stages.append(_reading(stage, chosen, written, folder))
            phrases.append(chosen.in_words())
        recipe = entry.recipe.model_copy(update={"stages": tuple(stages)})
        found.append(replace(entry, recipe=recipe, trained_on=tuple(phrases)))
    for entry in found:
        check_stages(entry.recipe)
    return tuple(found)


def _reading(stage: Stage, chosen: Chosen, written: dict[str, Path], folder: Path) -> Stage:
    key = f"{chosen.kind} {[str(example.origin) for example in chosen.examples]}"
    if key not in written:
        number = sum(file.name.startswith(chosen.kind) for file in written.values())
        name = f"{chosen.kind}s{f'-{number + 1}' if number else ''}.jsonl"
        written[key] = chosen.write(folder / name)
    data = written_settings(stage.data, chosen.kind, written[key].resolve())
    return stage.model_copy(update={"data": data})


def _files(data: DataSettings) -> list[DataSettings]:
    """The settings of each file by itself; a recipe's own held-out file is left alone, all are held out of the same."""
    return [data.model_copy(update={"path": path}) for path in data.paths]


def _identity(data: DataSettings) -> str:
    """What tells whether two settings read the same rows."""
    return data.model_dump_json(include={"path", "format", "columns", "limit", "on_bad_row"})


def _known(data: DataSettings, known: dict[str, Pile]) -> Pile:
    key = _identity(data)
    if key not in known:
        known[key] = read_pile(data)
    return known[key]
