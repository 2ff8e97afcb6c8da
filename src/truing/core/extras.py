"""Packages that only some settings need: a missing one is named with the command that installs it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from truing.core.errors import RecipeError


def require(key: str, packages: Iterable[str], extra: str) -> None:
    """Refuse a setting, by its key and value, whose packages are missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RecipeError(
            f"{key} needs {' and '.join(missing)}, which is not installed; install the extra: "
            f"pip install 'truing[{extra}]'"
        )
