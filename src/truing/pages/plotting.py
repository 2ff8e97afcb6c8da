"""Figures in one style: inline SVG that follows the page's colours, or files with fixed light ones.

Matplotlib's object interface only: nothing here opens a window, keeps a figure alive, or changes global settings.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from truing.core.errors import InputError
from truing.core.text import harmless
from truing.pages.palette import GRID, INK, LIGHT, MUTED, PAPER, SERIES

Dashes = str | tuple[float, tuple[float, ...]]

DASHES: tuple[Dashes, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
    (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)),
    (0, (2.5, 1)),
    (0, (9, 1.5, 3, 1.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")

MARGINS = {"left": 0.66, "right": 0.14, "top": 0.34, "bottom": 0.46}
"""Inches around the axes: fixed, so that panels beside each other line up and no second drawing is needed."""


def _styled() -> AbstractContextManager[None]:
    """Matplotlib's defaults as these figures need them, for as long as they are made or written."""
    return mpl.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 8.5,
            "svg.fonttype": "none",
            "svg.hashsalt": "truing",
            "path.simplify": False,
        }
    )


class LineStyle(TypedDict):
    """Arguments of `Axes.plot` that tell one series from another, in colour and without."""

    color: str
    linestyle: Dashes
    linewidth: float
    marker: str
    markersize: float
    markevery: float | list[int]


def series(index: int) -> LineStyle:
    """The look of a series: eight colours, each with a marker; from the ninth on the same colours in other dashes.

    >>> series(0)["color"] == series(8)["color"], series(0)["linestyle"] == series(8)["linestyle"]
    (True, False)
    """
    place, turn = index % len(SERIES), index // len(SERIES)
    return LineStyle(
        color=LIGHT[SERIES[place]],
        linestyle=DASHES[(place + turn) % len(DASHES)],
        linewidth=1.5,
        marker=MARKERS[place],
        markersize=3.5,
        markevery=0.2,
    )


def thin_series(index: int) -> LineStyle:
    """The look of one among so many that only the crowd can be read: a hairline without marker."""
    return LineStyle(
        color=LIGHT[SERIES[index % len(SERIES)]],
        linestyle="solid",
        linewidth=0.5,
        marker="",
        markersize=0.0,
        markevery=1.0,
    )


def dot(index: int) -> LineStyle:
    """The look of a series that is one point: its marker, larger."""
    style = series(index)
    style["markersize"] = 5.0
    style["markevery"] = [0]
    return style


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure, `width` by `height` inches, and its axes row by row."""
    with _styled():
        made = Figure(figsize=(width, height), facecolor="none")
        axes = [made.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
        for each in axes:
            _dress(each)
    wide = (width - MARGINS["left"] - MARGINS["right"]) / columns
    high = (height - MARGINS["top"] - MARGINS["bottom"]) / rows
    made.subplots_adjust(
        left=MARGINS["left"] / width,
        right=1 - MARGINS["right"] / width,
        bottom=MARGINS["bottom"] / height,
        top=1 - MARGINS["top"] / height,
        wspace=(MARGINS["left"] + MARGINS["right"]) / wide,
        hspace=(MARGINS["top"] + MARGINS["bottom"]) / high,
    )
    return made, axes


def _dress(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT[MUTED])
    axes.spines[["left", "bottom"]].set_linewidth(0.7)
    axes.grid(True, color=LIGHT[GRID], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT[MUTED], labelsize=8, width=0.6, length=2.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, place: tick(value)))


def tick(value: float) -> str:
    """A number beside an axis, short.

    >>> [tick(x) for x in (0.0, -0.25, 1e-05, 2500, 12_000, 3.2e6)]
    ['0', '−0.25', '1e−5', '2500', '12k', '3.2M']
    """
    size = abs(value)
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(factor, 10_000):
            return f"{value / factor:.4g}{letter}".replace("-", "−")
    text = "0" if size < 1e-15 else f"{value:.4g}"
    return re.sub(r"e-0?", "e−", text).replace("-", "−")


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a panel and its axes; `x` and `y` carry their units, as in `KL (nats)`."""
    with _styled():
        axes.set_title(plain(title), loc="left", fontsize=9.5, fontweight="bold", color=LIGHT[INK], pad=6)
        axes.set_xlabel(plain(x), fontsize=8.5, color=LIGHT[MUTED], labelpad=2)
        axes.set_ylabel(plain(y), fontsize=8.5, color=LIGHT[MUTED], labelpad=3)


def legend(axes: Axes, names: Sequence[str]) -> None:
    """Name the lines drawn so far, in their order."""
    with _styled():
        axes.legend(
            axes.get_lines()[: len(names)],
            [plain(name) for name in names],
            fontsize=8,
            labelcolor=LIGHT[INK],
            facecolor=LIGHT[PAPER],
            edgecolor="none",
            framealpha=0.75,
            handlelength=2.4,
            borderaxespad=0.2,
            labelspacing=0.3,
            loc="best",
        )


def log_scale(axes: Axes) -> None:
    """Make the upward axis logarithmic, for values that differ by orders of magnitude."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def sample_of_line(index: int, place: str) -> Markup:
    """A short piece of a series' line with its marker, to stand before its name in a legend or a table.

    `place` tells samples of the same line on one page apart, whose ids would otherwise be the same.
    """
    with _styled():
        made = Figure(figsize=(0.6, 0.18), facecolor="none")
        axes = made.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 2), ylim=(-1, 1))
    style = series(index)
    style["markevery"] = [1]
    axes.plot([0.1, 1, 1.9], [0, 0, 0], **style)
    return to_svg(made, f"line {index + 1}", place)


def plain(text: str, limit: int = 60) -> str:
    """Text of strangers on one line, harmless and short enough for a label."""
    line = " ".join(harmless(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def to_svg(figure: Figure, title: str, description: str) -> Markup:
    """The figure as inline SVG for a page that has the palette's custom properties.

    Text stays text, the bytes depend on nothing but the arguments, and the same SVG is right in light, dark and print.
    `title` and `description` are what a screen reader says.
    """
    buffer = io.StringIO()
    with _styled():
        _take_text_literally(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), title, description)


def to_file(figure: Figure, path: Path) -> None:
    """Write the figure in its light colours on white; the name's end says whether as PNG or SVG."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"{path}: a figure is written as .png or .svg")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with _styled():
        _take_text_literally(figure)
        figure.savefig(path, format=kind, dpi=200, facecolor="white", metadata=metadata)


def _take_text_literally(figure: Figure) -> None:
    """A dollar sign in somebody's text starts no formula."""
    for found in figure.findobj(Text):
        assert isinstance(found, Text)
        found.set_parse_math(False)


def _inline(svg: str, title: str, description: str) -> Markup:
    opening = re.search(r"<svg\b[^>]*>", svg)
    assert opening is not None
    view = re.search(r'viewBox="([^"]+)"', opening[0])
    assert view is not None
    body = svg[opening.end() : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", body)
    key = "fig-" + hashlib.sha256(f"{title}\0{description}\0{body}".encode()).hexdigest()[:10]
    body = _with_own_ids(body, key)
    body = _with_properties(body)
    body = "\n".join(line.strip() for line in body.splitlines() if line.strip())
    return Markup(
        f'<svg viewBox="{view[1]}" width="100%" role="img" aria-labelledby="{key}-t {key}-d" '
        f'style="stroke-linejoin:round;stroke-linecap:butt">\n<title id="{key}-t">{escape(harmless(title))}</title>\n'
        f'<desc id="{key}-d">{escape(harmless(description))}</desc>\n{body}\n</svg>'
    )


def _with_own_ids(body: str, key: str) -> str:
    """Ids that something refers to become the figure's own; the others, which every figure would have, go."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{key}-{found[1]}"' if found[1] in used else ""

    body = re.sub(r' id="([^"]*)"', renamed, body)
    return re.sub(r'(url\(#|href="#)([^)"]+)', rf"\g<1>{key}-\g<2>", body)


def _with_properties(body: str) -> str:
    """Fixed colours become custom properties, where they are values of a style and not words of a text."""
    names = {value.lower(): name for name, value in LIGHT.items()}

    def style(found: re.Match[str]) -> str:
        return re.sub(r"#[0-9a-f]{6}\b", lambda hit: _property(hit[0], names), found[0])

    return re.sub(r'(?:style|fill|stroke)="[^"]*"', style, body)


def _property(colour: str, names: dict[str, str]) -> str:
    name = names.get(colour)
    return f"var(--{name})" if name else colour
