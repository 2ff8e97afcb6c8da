"""Whatever lies in a file, reading it gives an answer or one of our errors; `make fuzz` tries far more of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import law
from tests.hostile.fuzz import fuzz
from tests.hostile.law import Reader, hold
from tests.hostile.readers import readers

CASES = 200
READERS = pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)


@READERS
def test_an_unsound_file_is_refused_in_words(reader: Reader, tmp_path: Path) -> None:
    @settings(
        max_examples=max(5, round(CASES * reader.share)), derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def law_holds(data: st.DataObject) -> None:
        hold(reader, lambda below: data.draw(st.integers(0, below - 1)), tmp_path)

    law_holds()


@READERS
def test_a_sound_file_is_read(reader: Reader, tmp_path: Path) -> None:
    """Or else all of the above would be refused for nothing."""
    refused = sum(hold(reader, random.Random(number).randrange, tmp_path) for number in range(60))
    assert refused < 60


def test_a_reader_that_breaks_the_law_is_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes(folder: Path) -> None:
        (folder / "new").write_text("", encoding="utf-8")

    def hangs(folder: Path) -> None:
        while True:
            pass

    def raises(folder: Path) -> None:
        raise KeyError("deep inside")

    monkeypatch.setattr(law, "SECONDS", 0.05)
    for read in (writes, hangs, raises):
        assert fuzz(Reader("bad", lambda choose: {"file": b""}, read), 0, 2) == 2
    assert "deep inside" in capsys.readouterr().err
