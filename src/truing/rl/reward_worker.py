"""Runs a user's reward function in a process of its own, so that one that hangs can be ended.

`python -m truing.rl.reward_worker FILE FUNCTION` reads a JSON object a line, {"prompts", "completions", "columns"}, and
answers each with {"rewards": [...]} or {"error": "..."}. What the function prints goes to the error stream.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main(file: str, function: str) -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        called = _load(Path(file), function)
    except BaseException as failure:  # noqa: BLE001 - the same
        answer({"error": f"{_where(failure, file)}{_what(failure)}"})
        return
    answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = called(asked["prompts"], asked["completions"], **asked["columns"])
            answer({"rewards": _numbers(found)})
        except BaseException as failure:  # noqa: BLE001 - a user's code may raise anything, and all of it is told
            answer({"error": f"{_where(failure, file)}{_what(failure)}"})


def _load(path: Path, function: str) -> Callable[..., Any]:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        known = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise AttributeError(f"no function '{function}' in it (it has: {', '.join(known) or 'none'})")
    called: Callable[..., Any] = found
    return called


def _numbers(found: Any) -> Any:
    """A list of floats where that is what came back; anything else as text, for the other side to complain about."""
    if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__iter__"):
        return {"type": type(found).__name__}
    return [None if value is None else _number(value) for value in found]


def _number(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return repr(value)[:80]


def _what(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"[:500]


def _where(failure: BaseException, file: str) -> str:
    """The last line of the user's file on the way to the failure."""
    lines = [frame.lineno for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1]}: " if lines else f"{file}: "


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
