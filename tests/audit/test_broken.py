"""Every planted fault is found by its name at its level, nothing else is blamed, and sound data are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.audit.broken import FAULTS, Broken, Files, clean
from tests.audit.folder import model_folder
from truing.audit.audit import Audit, audit

CHECKS = {
    *("readable", "format", "rows", "mixed", "roles", "identical_pair", "identical_after_cut", "end_token", "bos"),
    *("leakage", "contradictions", "duplicates", "near_duplicates", "cut", "length_bias", "shortcut", "noise"),
    *("balance", "amount", "template", "text", "margin"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("model"))


def check(files: Files, model: str) -> Audit:
    asked: dict[str, Any] = {name: model if value is ... else value for name, value in files.asked.items()}
    return audit(files.paths, **asked)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_and_nothing_else(fault: Broken, model: str, tmp_path: Path) -> None:
    found = check(fault.make(tmp_path), model)
    wrong = {finding.check: finding for finding in found.findings if finding.level != "ok"}
    assert fault.check in wrong, sorted(wrong)
    finding = wrong[fault.check]
    assert finding.level in fault.levels, finding.sentence
    assert finding.remedy
    if fault.rows is not None:
        assert sorted(origin.row for origin in finding.rows) == sorted(fault.rows)
    few = {"amount"} if fault.check != "amount" else set()
    assert set(wrong) - {fault.check} <= fault.beside | few, {name: f.sentence for name, f in wrong.items()}
    levels = {finding.level for finding in wrong.values()}
    assert found.verdict == ("stop" if "stop" in levels else "warn")


@pytest.mark.parametrize(("name", "make"), list(clean()), ids=[name for name, _ in clean()])
def test_sound_data_are_left_in_peace(name: str, make: Callable[[Path], Files], model: str, tmp_path: Path) -> None:
    found = check(make(tmp_path), model)
    assert {finding.check: finding.sentence for finding in found.findings if finding.level != "ok"} == {}
    assert found.verdict == "ok"


def test_every_check_that_can_warn_has_a_fault_planted_for_it() -> None:
    assert {fault.check for fault in FAULTS} == CHECKS
