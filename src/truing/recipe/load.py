"""From a file and `--set` overrides to a resolved recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from truing.core.errors import RecipeError, suggest
from truing.core.settings import ELSEWHERE, parse
from truing.recipe.schema import Recipe, Stage
from truing.recipe.yaml_file import Document, Path_, read, value_of
from truing.rl.server_settings import PolicyServerSettings

TOP_ONLY = ("output", "stages")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides, and give every stage what it does not say itself.

    Relative paths are looked for from the working directory first, then beside the recipe; they come out absolute, so
    that the run can be resumed from anywhere.
    """
    document = read(path)
    values = copy.deepcopy(document.values)
    for override in overrides:
        document.note_override(_apply(values, override), override)
    return _resolve(document, values, path.resolve().parent)


def recipe_from(values: Mapping[str, Any], folder: Path | None = None) -> Recipe:
    """Resolve a recipe given as plain values, for use as a library."""
    document = Document("recipe", dict(values), {})
    return _resolve(document, copy.deepcopy(dict(values)), folder or Path.cwd())


def dump(recipe: Recipe) -> str:
    """Write a resolved recipe as YAML that `load_recipe` reads back to the same recipe."""
    values = recipe.model_dump(mode="json")
    for stage in values["stages"]:
        stage["adapter"] = stage["adapter"] or "none"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _resolve(document: Document, values: dict[str, Any], folder: Path) -> Recipe:
    own_stages = _stages(document, values)
    shared = {key: value for key, value in values.items() if key not in TOP_ONLY}
    several = "stages" in values
    stages = []
    for index, own in enumerate(own_stages):
        merged = _merge(shared, own)
        if index > 0 and "model" not in own:
            merged.pop("model", None)
        prefix: Path_ = ("stages", index) if several else ()
        stage = parse(Stage, merged, where=_locator(document, prefix))
        if index == 0 and stage.model is None:
            raise RecipeError(f"{document.where(())}'model' is missing; give a model folder or a hub id")
        if "use" not in stage.objective:
            raise RecipeError(f"{document.where((*prefix, 'objective'))}'objective.use' is missing, such as sft or dpo")
        stages.append(_absolute(_named(stage), folder))
    _refuse_equal_names(document, stages)
    return parse(Recipe, {"output": values.get("output"), "stages": [_plain(stage) for stage in stages]})


def _stages(document: Document, values: dict[str, Any]) -> list[dict[str, Any]]:
    if "stages" not in values:
        _check_keys(document, values)
        return [{}]
    stages = values["stages"]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise RecipeError(f"{document.where(('stages',))}'stages' must be a list with one mapping a stage")
    _check_keys(document, values)
    return stages


def _check_keys(document: Document, values: dict[str, Any]) -> None:
    """A misspelt key at the top is reported once, at its line, not once for every stage."""
    known = [*Stage.model_fields, *TOP_ONLY]
    for key in values:
        if key not in known:
            hint = f"; here it is {ELSEWHERE[str(key)]}" if str(key) in ELSEWHERE else suggest(str(key), known)
            raise RecipeError(f"{document.where((str(key),))}'{key}' is not a known key{hint}")


def _locator(document: Document, prefix: Path_) -> Any:
    """Find a key's line in its stage, or at the top where the stage took it from there."""

    def where(path: Path_) -> str:
        in_stage = (*prefix, *path)
        if prefix and not document.knows(in_stage) and document.knows(path):
            return document.where(path)
        return document.where(in_stage)

    return where


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `above` over `below`; sections are merged key by key. Another objective starts from nothing."""
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            other_objective = key == "objective" and value.get("use", under.get("use")) != under.get("use")
            merged[key] = value if other_objective else _merge(under, value)
        else:
            merged[key] = value
    return merged


def _named(stage: Stage) -> Stage:
    name = stage.name or str(stage.objective["use"]).rpartition(":")[2]
    return stage.model_copy(update={"name": name})


def _refuse_equal_names(document: Document, stages: list[Stage]) -> None:
    names = [stage.name for stage in stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise RecipeError(
                f"{document.where(('stages', index))}two stages are named '{name}'; give one a `name:` of its own"
            )


def _absolute(stage: Stage, folder: Path) -> Stage:
    def found(value: str | None) -> str | None:
        if value is None:
            return None
        for base in (Path.cwd(), folder):
            if _exists(base / value):
                return str((base / value).resolve())
        return value

    data = stage.data
    paths = (data.path,) if isinstance(data.path, str) else data.path
    resolved = tuple(found(path) or path for path in paths)
    update: dict[str, Any] = {
        "model": found(stage.model),
        "data": data.model_copy(
            update={"path": resolved[0] if isinstance(data.path, str) else resolved, "eval_path": found(data.eval_path)}
        ),
    }
    if stage.forgetting.path is not None:
        update["forgetting"] = stage.forgetting.model_copy(update={"path": found(stage.forgetting.path)})
    if stage.template is not None and ("/" in stage.template or stage.template.endswith(".jinja")):
        update["template"] = found(stage.template)
    if stage.adapter is not None and stage.adapter.start is not None:
        update["adapter"] = stage.adapter.model_copy(update={"start": found(stage.adapter.start)})
    use = str(stage.objective["use"])
    if ".py:" in use:
        update["objective"] = {**stage.objective, "use": _found_function(use, found)}
    rewards = []
    for reward in stage.rollout.rewards:
        uses = [_found_reward(use, found) for use in reward.uses]
        rewards.append(reward.model_copy(update={"use": uses[0] if isinstance(reward.use, str) else tuple(uses)}))
    judge, asked = stage.evaluation.judge, stage.evaluation.judge_path
    if judge is not None:
        judge = _found_reward(judge, found)
    update["evaluation"] = stage.evaluation.model_copy(update={"judge": judge, "judge_path": found(asked)})
    update["rollout"] = stage.rollout.model_copy(update={"rewards": tuple(rewards), "server": _found_server(stage)})
    return stage.model_copy(update=update)


def _found_server(stage: Stage) -> PolicyServerSettings | None:
    server = stage.rollout.server
    if server is None or server.folder is None:
        return server
    return server.model_copy(update={"folder": str(Path(server.folder).absolute())})


def _exists(path: Path) -> bool:
    """Whether it is there; a name that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _found_reward(use: str, found: Callable[[str | None], str | None]) -> str:
    """A function's file or a reward model's folder as a whole path; a bare word may be an earlier stage's name."""
    if ".py:" in use:
        return _found_function(use, found)
    return str(found(use)) if "/" in use else use


def _found_function(spec: str, found: Callable[[str | None], str | None]) -> str:
    """`FILE.py:NAME` with the file's whole path."""
    file, _, name = spec.rpartition(":")
    return f"{found(file)}:{name}"


def _plain(stage: Stage) -> dict[str, Any]:
    return stage.model_dump(mode="json")


def _apply(values: dict[str, Any], override: str) -> Path_:
    """Set one `a.b=value` and return where; `stages.dpo.optim.lr` reaches a stage by its name or number (from 0)."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override}: write it as key=value, such as --set optim.lr=1e-5")
    path = key.strip().split(".")
    value = value_of(text)
    if path[0] != "stages":
        _refuse_without_effect(values, path, override)
        _put(values, path, value)
        return tuple(path)
    if len(path) < 3 or "stages" not in values:
        raise RecipeError(
            f"--set {override}: a stage's key is written stages.NAME.section.key, and the recipe needs stages"
        )
    index = _stage_called(values["stages"], path[1], override)
    _put(values["stages"][index], path[2:], value)
    return ("stages", index, *path[2:])


def _stage_called(stages: list[dict[str, Any]], word: str, override: str) -> int:
    names = _stage_names(stages)
    index = names.index(word) if word in names else int(word) if word.isdecimal() and len(word) < 5 else len(names)
    if index < len(names) and isinstance(stages[index], dict):
        return index
    raise RecipeError(f"--set {override}: there is no stage '{word}'{suggest(word, names)}")


def _stage_names(stages: object) -> list[str]:
    """What stages are called by, of a recipe that is not checked yet."""
    names = []
    for stage in stages if isinstance(stages, list) else []:
        objective = stage.get("objective") if isinstance(stage, dict) else None
        use = objective.get("use", "") if isinstance(objective, dict) else ""
        names.append(str((isinstance(stage, dict) and stage.get("name")) or use))
    return names


def _put(section: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            section[part] = inner = {"use": inner} if part in ("adapter", "objective") else {}
        section = inner
    section[path[-1]] = value


def _refuse_without_effect(values: dict[str, Any], path: Sequence[str], override: str) -> None:
    """An override that every stage overrides again would be silently lost."""
    stages = values.get("stages")
    if not isinstance(stages, list) or not stages:
        return
    if all(isinstance(stage, dict) and _has(stage, path) for stage in stages):
        names = _stage_names(stages)
        keys = " or ".join(f"stages.{name}.{'.'.join(path)}" for name in names)
        raise RecipeError(f"--set {override} has no effect: every stage sets its own; use {keys}")


def _has(section: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True
