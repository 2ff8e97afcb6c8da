"""The live display: its curves are of the whole run, and it stays as high as it is in a narrow terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import pytest
from rich.console import Console

from truing.training.curves import Curves
from truing.training.progress import Lines, Terminal
from truing.training.sparkline import ASCII, BLOCKS

FIGURES = {"loss": 0.612, "margin": 0.081, "accuracy": 0.75, "eval": 0.598, "tok/s": 5123.0, "GB": 0.745}


def console(width: int, encoding: str = "utf-8") -> Console:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    return Console(file=out, width=width, height=20, force_terminal=True, legacy_windows=False)


def live(width: int, *steps: Mapping[str, float]) -> list[str]:
    """The lines of the live display after these steps of twenty."""
    terminal = Terminal(console(width))
    terminal.begin("dpo", 20)
    for done, figures in enumerate(steps, 1):
        terminal.advance(done, figures)
    progress = terminal._progress
    assert progress is not None
    terminal._curves.draw()
    terminal.end()
    shown = Console(width=width, record=True, file=io.StringIO())
    shown.print(progress.get_renderable())
    return [line.rstrip() for line in shown.export_text().splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_display_is_a_bar_a_line_of_figures_and_two_curves_at_any_width(width: int) -> None:
    lines = live(width, FIGURES, {**FIGURES, "loss": 0.5, "accuracy": 1.0})
    assert [line.split()[0] for line in lines] == ["dpo", "loss", "loss", "accuracy"]


def test_at_sixty_columns_curves_are_whole() -> None:
    _, _, loss, quality = live(60, FIGURES, {**FIGURES, "loss": 0.5, "accuracy": 1.0})
    assert "█▁" in loss
    assert loss.endswith("0.500 to 0.612")
    assert quality.endswith("0.750 to 1.000")


def test_nothing_is_drawn_of_a_single_step() -> None:
    assert len(live(80, FIGURES)) == 2


def test_the_loss_alone_is_drawn_where_nothing_tells_of_quality() -> None:
    assert len(live(80, {"loss": 2.0}, {"loss": 1.0})) == 3


def test_a_resumed_run_shows_its_curve_from_its_first_step() -> None:
    terminal = Terminal(console(80))
    terminal.begin("sft", 4, 2, [{"loss": 8.0}, {"loss": 4.0}])
    terminal.advance(3, {"loss": 1.0})
    terminal._curves.draw()
    terminal.end()
    assert terminal._curves.lines[0].endswith("1.000 to 8.000")


def test_a_console_without_blocks_gets_ascii() -> None:
    terminal = Terminal(console(80, "ascii"))
    terminal.begin("sft", 4)
    for done in (1, 2):
        terminal.advance(done, {"loss": float(done)})
    terminal._curves.draw()
    terminal.end()
    assert terminal._curves.lines[0].isascii()
    assert ASCII[0] in terminal._curves.lines[0]


def test_the_most_telling_figure_is_drawn_however_late_it_comes() -> None:
    curves = Curves()
    for step in range(6):
        curves.add({"loss": 1.0, "margin": float(step), **({"score": 1.0 - step} if step > 3 else {})})
    curves.draw()
    assert [line.split()[0] for line in curves.lines] == ["loss", "score"]


def test_a_step_without_a_loss_leaves_a_gap() -> None:
    curves = Curves()
    for loss in (2.0, math.nan, 1.0):
        curves.add({"loss": loss})
    curves.draw()
    assert curves.lines[0].endswith("  1.000 to 2.000")
    assert "█ ▁" in curves.lines[0]


def test_pipes_get_no_curves(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin("dpo", 2, 0, [])
    for done in (1, 2):
        lines.advance(done, FIGURES)
    lines.end()
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2
    assert not set(printed) & set(BLOCKS)
