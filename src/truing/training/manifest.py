"""The list of a folder's files with the SHA-256 of each, written last, so that damage is found before it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from truing.core.files import read_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List every file of the folder, those of inner folders too."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Say what of a folder is not as its manifest has it; None where all is."""
    try:
        digests = dict(read_json(folder / MANIFEST))
        for name, digest in digests.items():
            if not _is_below(folder, name):
                return f"its manifest names {name}, which is not a file of it"
            if file_digest(folder / name) != digest:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, TypeError) as failure:
        return str(failure)
    return None


def _is_below(folder: Path, name: str) -> bool:
    """Whether a manifest's name stays inside its folder, and is of no pipe, which would be waited for."""
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and ((folder / name).is_file() or not (folder / name).exists())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
