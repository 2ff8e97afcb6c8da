"""Reads YAML as people write it, and remembers on which line each key stands."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from truing.core.errors import RecipeError

Path_ = tuple[str | int, ...]

MOST_KEYS = 20_000
"""Keys and items of a recipe, each alias counted anew: a kilobyte of aliases of aliases can stand for millions."""

LONGEST_NUMBER = 400
DEEPEST = 100

NO_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
"""What PyYAML raises: it lets through what Python says of dates and numbers that there are not."""


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
    except (OSError, ValueError) as failure:
        raise RecipeError(f"{path}: cannot be read as text: {failure}") from failure
    lines: dict[Path_, int] = {}
    values = _understood(text, lines, str(path), f"{path}: not valid YAML")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `model:` and `objective:`")
    return Document(str(path), values, lines)


def value_of(text: str) -> Any:
    """Read the value of a `key=value` override as YAML would."""
    return _understood(text, {}, "--set", f"--set: '{text}' is not a YAML value")


def _understood(text: str, lines: dict[Path_, int], file: str, complaint: str) -> Any:
    """The values of a YAML text; the line of each key goes into `lines`."""
    if is_deep(text):
        raise RecipeError(f"{complaint}: nested too deeply")
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _note_lines(node, (), lines, file)
        return yaml.load(text, Loader=_Loader)
    except NO_YAML as failure:
        raise RecipeError(f"{complaint}: {_first_line(failure)}") from None
    except RecursionError:
        raise RecipeError(f"{complaint}: nested too deeply") from None


def is_deep(text: str) -> bool:
    """Whether brackets, or dashes in one line, are nested as no recipe's are: PyYAML's time grows with their square."""
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket[0] in "[{" else -1))
        if depth > DEEPEST:
            return True
    return re.search(rf"(?:[-?:][ \t]+){{{DEEPEST}}}", text) is not None


def _note_lines(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > MOST_KEYS:
        raise RecipeError(f"{file}: over {MOST_KEYS:,} keys and items, aliases counted in full; a recipe has a hundred")
    if isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_NUMBER and node.tag.endswith(("int", "float")):
        raise RecipeError(f"{file}:{node.start_mark.line + 1}: a number of {len(node.value):,} digits")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{file}:{key.start_mark.line + 1}: a key has to be a word")
            here = (*path, key.value)
            if here in lines:
                raise RecipeError(f"{file}:{key.start_mark.line + 1}: '{key.value}' is given twice in this section")
            lines[here] = key.start_mark.line + 1
            _note_lines(value, here, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines, file)


def _first_line(failure: Exception) -> str:
    if isinstance(failure, yaml.MarkedYAMLError) and failure.problem_mark is not None:
        return f"line {failure.problem_mark.line + 1}: {failure.problem}"
    return (str(failure).splitlines() or [type(failure).__name__])[0]
