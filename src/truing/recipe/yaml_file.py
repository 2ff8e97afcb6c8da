"""Reads YAML as people write it, and remembers on which line each key stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from truing.core.errors import RecipeError

Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-4` as text; people mean the number."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its values, and the line of every key (from 1) or the `--set` that wrote it."""

    file: str
    values: dict[str, Any]
    lines: dict[Path_, int]
    overrides: dict[Path_, str] = field(default_factory=dict)

    def knows(self, path: Path_) -> bool:
        """Whether a key was written, in the file or by an override."""
        return path in self.lines or path in self.overrides

    def note_override(self, path: Path_, text: str) -> None:
        """Remember that an override wrote this key, and the sections around it that the file has not."""
        for length in range(1, len(path) + 1):
            if length == len(path) or path[:length] not in self.lines:
                self.overrides[path[:length]] = text

    def where(self, path: Path_) -> str:
        """Return `file:line: ` or `--set …: ` of a key, or of the nearest section around it that was written."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return f"--set {self.overrides[path[:length]]}: "
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}: "
        return f"{self.file}: "


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.y*ml"))[:5]) if path.parent.is_dir() else ""
        raise RecipeError(f"{path}: no such recipe{f' (that folder has {near})' if near else ''}") from None
    except (OSError, UnicodeDecodeError) as failure:
        raise RecipeError(f"{path}: cannot be read as text: {failure}") from failure
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[Path_, int] = {}
        if node is not None:
            _note_lines(node, (), lines, str(path))
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as failure:
        raise RecipeError(f"{path}: not valid YAML: {_first_line(failure)}") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `model:` and `objective:`")
    return Document(str(path), values, lines)


def value_of(text: str) -> Any:
    """Read the value of a `key=value` override as YAML would."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as failure:
        raise RecipeError(f"--set: '{text}' is not a YAML value: {_first_line(failure)}") from None


def _note_lines(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            if here in lines:
                raise RecipeError(f"{file}:{key.start_mark.line + 1}: '{key.value}' is given twice in this section")
            lines[here] = key.start_mark.line + 1
            _note_lines(value, here, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines, file)


def _first_line(failure: yaml.YAMLError) -> str:
    mark = getattr(failure, "problem_mark", None)
    problem = getattr(failure, "problem", None) or str(failure).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)
