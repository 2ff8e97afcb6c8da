"""Points of a run at which it can be hurt: every file operation, and the moments of training. Nothing in the program
knows of them: they are put around the functions that it calls, in a process of its own.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from truing.rl.engine import RoleEngine
from truing.rl.rewards import FunctionReward, ModelReward

GROWS = ("open", "write", "mkdir", "sendfile")
"""Operations that a full disk refuses; it lets go of files and renames them."""
TRAINING = ("backward", "update", "sample", "reward")


@dataclass(slots=True)
class Points:
    """Counts points, of all kinds or of some, and does harm at one of them."""

    at: int
    """The point that is hurt, counted from 1; 0 hurts none."""
    harm: Harm
    kinds: tuple[str, ...] = ()
    """Kinds that count; empty counts all."""
    passed: list[str] = field(default_factory=list)

    def reach(self, kind: str, path: object = "", half: Callable[[], int] = lambda: 0) -> int | None:
        """Arrive at a point; `half` does half of what was to be done there.

        Returns how much was done, where that is to be taken for all that could be; None where all is to be done.
        """
        if self.kinds and kind not in self.kinds:
            return None
        self.passed.append(kind)
        return self.harm.maybe(kind, str(path), len(self.passed), self.at, half)


class Harm:
    """What may be done at a point."""

    def maybe(self, kind: str, path: str, number: int, at: int, half: Callable[[], int]) -> int | None:
        """Do it, where this is the point."""


@dataclass(slots=True)
class Kill(Harm):
    """End the process as a power cut would: at once, in the middle of what is being written."""

    tell: Callable[[tuple[str, Any]], object]

    def maybe(self, kind: str, path: str, number: int, at: int, half: Callable[[], int]) -> int | None:
        if number == at:
            half()
            self.tell(("killed", f"{kind} {path}".strip()))
            os.kill(os.getpid(), signal.SIGKILL)
        return None


@dataclass(slots=True)
class Fail(Harm):
    """Refuse with an error number: a full or read-only disk from here on, a failing one this once."""

    number: int

    def maybe(self, kind: str, path: str, number: int, at: int, half: Callable[[], int]) -> int | None:
        if kind in TRAINING or number < at or not at:
            return None
        if number == at and kind == "write":
            half()
        here = {errno.EIO: number == at, errno.ENOSPC: kind in GROWS, errno.EROFS: kind != "fsync"}
        if here[self.number]:
            raise OSError(self.number, os.strerror(self.number), path)
        return None


@dataclass(slots=True)
class Short(Harm):
    """Write half of what was asked for and say so, without an error, as the system may: there, or everywhere for 0."""

    def maybe(self, kind: str, path: str, number: int, at: int, half: Callable[[], int]) -> int | None:
        if kind in ("write", "sendfile") and at in (0, number):
            return half() or None  # a single byte has no half
        return None


class _File(io.FileIO):
    """A file whose writes are points."""

    points: Points
    below: str
    """Its path below the folder that is watched."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")

        def half() -> int:
            return io.FileIO.write(self, view[: len(view) // 2])

        written = self.points.reach("write", self.below, half)
        return io.FileIO.write(self, view) if written is None else written


def install(points: Points, root: Path) -> None:
    """Put the points around what writes below `root`, and around what trains."""
    _install_files(points, root.resolve())
    for kind, owner, name in (
        ("backward", Tensor, "backward"),
        ("update", torch.optim.AdamW, "step"),
        ("sample", RoleEngine, "sample"),
        ("reward", FunctionReward, "__call__"),
        ("reward", ModelReward, "__call__"),
    ):
        setattr(owner, name, _before(points, kind, getattr(owner, name)))


def _before(points: Points, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def reached(*arguments: Any, **named: Any) -> Any:
        points.reach(kind)
        return real(*arguments, **named)

    return reached


def _install_files(points: Points, root: Path) -> None:
    real_open = io.open

    def is_ours(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(root)

    def below(path: object) -> str:
        found = Path(str(path)).absolute()
        return str(found.relative_to(root)) if found.is_relative_to(root) else found.name

    def name_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if not is_ours(file) or not set(mode) & set("wax+"):
            return real_open(file, mode, *rest, **named)
        points.reach("open", below(file))
        raw = _File(file, mode.replace("b", "").replace("t", ""))
        raw.points, raw.below = points, below(file)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        encoding = named.get("encoding") or (rest[1] if len(rest) > 1 else None)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)

    def around(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *rest: Any, **named: Any) -> Any:
            def half() -> int:
                source, offset, count = rest
                return int(real(path, source, offset, count // 2))

            where: object = name_of(path) if isinstance(path, int) else path
            if named.get("dir_fd") is not None:  # of a folder that is being deleted
                where = Path(name_of(named["dir_fd"])) / str(path)
            if is_ours(where):
                done = points.reach(kind, below(where), half if kind == "sendfile" else lambda: 0)
                if done is not None:
                    return done
            return real(path, *rest, **named)

        return called

    io.open = opened  # type: ignore[assignment]
    builtins.open = opened
    for kind in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "sendfile", "truncate"):
        setattr(os, kind, around(kind, getattr(os, kind)))
    for module in (safetensors.torch, safetensors.numpy):
        module.serialize_file = _serialize_file  # type: ignore[attr-defined]


def _serialize_file(tensors: Mapping[str, Any], path: Any, metadata: Mapping[str, str] | None = None) -> None:
    """The library's own, which no Python sees writing, once more in Python; its errors are of the same kind."""
    content = safetensors.serialize(dict(tensors), dict(metadata) if metadata else None)
    try:
        with open(path, "wb") as file:  # noqa: PTH123 - the very function that is watched
            size = struct.unpack("<Q", content[:8])[0] + 8
            file.write(content[:size])
            file.flush()
            file.write(content[size:])
    except OSError as failure:
        text = f"Error while serializing: I/O error: {os.strerror(failure.errno)} (os error {failure.errno})"
        raise SafetensorError(text) from None
    assert json.loads(content[8:size])
