"""Files read and written whole: what a stranger wrote is read without surprises, what is written here is never half."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files to neighbours first, and give all their names when every byte is on the disk.

    No link is followed: a neighbour is always a new file. Raises OSError, and leaves no neighbour behind.
    """
    staged = {target.with_name(f".{target.name}.part"): target for target in contents}
    try:
        for staging, target in staged.items():
            staging.unlink(missing_ok=True)
            with staging.open("xb") as handle:
                handle.write(contents[target])
                handle.flush()
                os.fsync(handle.fileno())
        for staging, target in staged.items():
            staging.replace(target)
    finally:
        for staging in staged:
            staging.unlink(missing_ok=True)


def read_json(file: Path) -> Any:
    """Read a JSON file. Raises OSError, and ValueError for all that is not JSON or is nested too deep to be read."""
    if file.exists() and not file.is_file():  # a pipe would be waited for, for ever
        raise OSError(f"{file.name} is not a regular file")
    return parse_json(file.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError for all that is not JSON, nested too deep, or a number of thousands of digits."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
