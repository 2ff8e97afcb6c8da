"""Finds objectives by name: every file of this package, and a user's own file written `./my_loss.py:MyLoss`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import truing.objectives
from truing.core.errors import RecipeError, suggest
from truing.core.settings import parse
from truing.objectives.base import Objective


def discover() -> dict[str, type[Objective]]:
    """Return every objective of this package by its name, in alphabetical order."""
    found: dict[str, type[Objective]] = {}
    for module_info in pkgutil.iter_modules(truing.objectives.__path__):
        module = importlib.import_module(f"{truing.objectives.__name__}.{module_info.name}")
        for candidate in _objectives_in(module):
            found[candidate.name] = candidate
    return dict(sorted(found.items()))


def create(spec: Mapping[str, Any], where: Callable[[tuple[str | int, ...]], str] = lambda path: "") -> Objective:
    """Build the objective that a recipe's `objective:` section describes; `use` names it, the rest are its fields."""
    if "use" not in spec:
        raise RecipeError(f"{where(())}'objective.use' is missing{suggest('', discover())}")
    cls = find(str(spec["use"]), where)
    fields = {key: value for key, value in spec.items() if key != "use"}
    return parse(cls, fields, where=lambda path: f"{where(path)}objective {cls.name}: ")


def find(use: str, where: Callable[[tuple[str | int, ...]], str] = lambda path: "") -> type[Objective]:
    """Return the class that `use` names: a known name, or `FILE.py:CLASS`."""
    if ".py:" in use:
        return _from_file(use)
    known = discover()
    if use not in known:
        raise RecipeError(
            f"{where(('use',))}there is no objective '{use}'{suggest(use, known)} (all: {', '.join(known)}; "
            "your own: ./my_loss.py:MyLoss)"
        )
    return known[use]


def _from_file(use: str) -> type[Objective]:
    file, _, class_name = use.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"objective.use: there is no file '{file}'; write it as ./my_loss.py:MyLoss")
    module = _load(path)
    candidate = getattr(module, class_name, None)
    if not (inspect.isclass(candidate) and issubclass(candidate, Objective)):
        names = [cls.__name__ for cls in _objectives_in(module)]
        raise RecipeError(
            f"objective.use: {file} has no Objective named '{class_name}'{suggest(class_name, names)}"
            " (a loss is a subclass of truing.api.Objective or truing.api.PairwiseObjective)"
        )
    if "name" not in vars(candidate):
        candidate.name = class_name
    return candidate


def _load(path: Path) -> ModuleType:
    """Import a user's file once per content; a fault in it is the user's error, not a traceback of ours."""
    content = path.read_bytes()
    name = f"truing_user_{hashlib.sha256(content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"objective.use: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through sys.modules
    try:
        spec.loader.exec_module(module)
    except Exception as failure:
        del sys.modules[name]
        raise RecipeError(f"objective.use: {path} failed while it was imported: {failure!r}") from failure
    return module


def _objectives_in(module: ModuleType) -> list[type[Objective]]:
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Objective) and member.__module__ == module.__name__ and not inspect.isabstract(member)
    ]
