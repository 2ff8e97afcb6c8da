"""A folder has one writer, and one that has died keeps nobody out, also where the system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from truing.core.errors import RunError
from truing.training import lock
from truing.training.lock import Holder, acquire


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(folder: Path, holder: Holder) -> None:
    (folder / lock.FILE).write_text(json.dumps(asdict(holder)), encoding="utf-8")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)


def test_the_lock_names_process_boot_and_machine(tmp_path: Path) -> None:
    with acquire(tmp_path):
        held = Holder.read((tmp_path / lock.FILE).read_text(encoding="utf-8"))
        assert held == Holder.here()
        assert held is not None
        assert held.process == os.getpid()
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            acquire(tmp_path)
    acquire(tmp_path).close()


def test_what_a_dead_process_wrote_keeps_nobody_out(tmp_path: Path, ended: int) -> None:
    hold(tmp_path, replace(Holder.here(), process=ended))
    acquire(tmp_path).close()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_of_the_system_the_holder_decides(tmp_path: Path, ended: int) -> None:
    here = Holder.here()
    for gone in (replace(here, process=ended), replace(here, process=os.getppid(), boot="an earlier start")):
        hold(tmp_path, gone)
        acquire(tmp_path).close()
    for present in (replace(here, process=os.getppid()), replace(here, machine="another", process=ended)):
        hold(tmp_path, present)
        with pytest.raises(RunError, match="is being written by process"):
            acquire(tmp_path)


def test_a_lock_file_that_says_nothing_is_taken_over(tmp_path: Path) -> None:
    for text in ("", "4711", "{}", '{"process": "x"}'):
        (tmp_path / lock.FILE).write_text(text, encoding="utf-8")
        acquire(tmp_path).close()
