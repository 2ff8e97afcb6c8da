"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files to neighbours first, and give all their names when every byte is on the disk.

    Raises OSError, and leaves no neighbour behind.
    """
    staged = {target.with_name(f".{target.name}.part"): target for target in contents}
    try:
        for staging, target in staged.items():
            with staging.open("wb") as handle:
                handle.write(contents[target])
                handle.flush()
                os.fsync(handle.fileno())
        for staging, target in staged.items():
            staging.replace(target)
    finally:
        for staging in staged:
            staging.unlink(missing_ok=True)
