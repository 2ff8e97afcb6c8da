from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from truing.core.errors import InputError
from truing.pages.palette import DARK, LIGHT, PAPER, SERIES, contrast
from truing.pages.plotting import figure, label, legend, plain, series, thin_series, tick, to_file, to_svg

HOSTILE = "<script>alert(1)</script> $x^2$ \x1b[31m _hidden \u202e"


def drawn(name: str = "run") -> Figure:
    made, (axes,) = figure(3.7, 2.5)
    for index in range(3):
        axes.plot(range(50), [index * x for x in range(50)], **series(index))
    label(axes, "Loss", "step", "loss (nats)")
    legend(axes, [name, "b", "c"])
    return made


def test_the_same_figure_becomes_the_same_bytes() -> None:
    assert to_svg(drawn(), "t", "d") == to_svg(drawn(), "t", "d")


def test_two_figures_share_no_id_and_every_reference_is_met_in_its_own() -> None:
    svgs = [to_svg(drawn(name), "t", "d") for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in svgs]
    used = [set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) for svg in svgs]
    assert not ids[0] & ids[1]
    assert all(there <= known for there, known in zip(used, ids, strict=True))


def test_colours_are_custom_properties_and_text_is_text() -> None:
    svg = to_svg(drawn("my run"), "Loss", "of three runs")
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert {"var(--ink)", "var(--muted)", "var(--grid)", "var(--series-1)"} <= set(re.findall(r"var\(--[\w-]+\)", svg))
    assert re.search(r">my run</text>", svg)
    assert 'role="img"' in svg
    assert re.search(r"<title[^>]*>Loss</title>\s*<desc[^>]*>of three runs</desc>", svg)


def test_text_of_strangers_is_shown_and_never_obeyed() -> None:
    svg = to_svg(drawn(HOSTILE), HOSTILE, HOSTILE)
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "\u202e" not in svg
    assert "$x^2$" in svg, "no formula is made of it"


def test_a_figure_refers_to_nothing_outside_of_itself() -> None:
    assert not re.search(r"https?:|@import|<style|<metadata|data:", to_svg(drawn(), "t", "d"))


def test_every_series_stands_out_from_the_page_in_light_and_in_dark() -> None:
    for colours in (LIGHT, DARK):
        for name in SERIES:
            assert contrast(colours[name], colours[PAPER]) >= 3.0, name
        for name in ("ink", "muted", "good", "warn"):
            assert contrast(colours[name], colours[PAPER]) >= 4.5, name
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT), "a colour stands for one role, or the SVG could not tell"


def test_the_first_64_series_differ_without_colour() -> None:
    looks = [(str(series(i)["linestyle"]), series(i)["marker"]) for i in range(64)]
    assert all(one != other for one, other in combinations(looks, 2))


def test_a_crowd_has_no_markers() -> None:
    assert thin_series(49)["marker"] == ""


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_file_has_fixed_colours_and_the_same_bytes(tmp_path: Path, ending: str) -> None:
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file in files:
        to_file(drawn(), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"var(" not in files[0].read_bytes()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        to_file(drawn(), tmp_path / "a.pdf")


def test_ticks_are_short() -> None:
    assert max(len(tick(value)) for value in (-0.00012, 123456.0, -9.999e-5, 0.0, 1e9)) <= 9


def test_a_label_is_one_short_line() -> None:
    assert plain("a\n\nb\tc") == "a b c"
    assert len(plain("x" * 1000)) == 60


def test_no_window_and_no_model_library_is_imported() -> None:
    unwanted = {"torch", "transformers", "matplotlib.pyplot"}
    code = f"import sys, truing.pages.plotting; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
