"""Figures of a comparison: intervals of every result, and bars of what training cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from truing.compare.standing import Standing
from truing.compare.verdict import cell
from truing.pages import page
from truing.pages.palette import INK, LIGHT, MUTED, SERIES
from truing.pages.plotting import figure, label, plain, series, to_svg

WIDTH = 3.8
"""Inches, as the panels of curves have."""
AROUND, ROW = 0.85, 0.44
"""Inches of title and axis together, and of a result."""


def intervals(standing: Standing, names: Sequence[str]) -> Markup:
    """A dot and a line a result, in the order given; the best and what is not separated from it are filled."""
    known = [name for name in names if name in standing.estimates]
    made, (axes,) = figure(WIDTH, AROUND + ROW * len(known))
    factor = 100.0 if standing.figure.percent else 1.0
    for place, name in enumerate(known):
        estimate = standing.estimates[name]
        low, high = (factor * end for end in estimate.interval())
        marked = name == standing.best or name in standing.tied or standing.best is None
        look = series(list(names).index(name))
        axes.plot([low, high], [place, place], color=look["color"], linewidth=2.0, solid_capstyle="round")
        axes.plot(
            [factor * estimate.value],
            [place],
            color=look["color"],
            marker=look["marker"],
            markersize=6.0,
            markerfacecolor=look["color"] if marked else LIGHT["paper"],
        )
        _name(axes, place, name)
    _rows(axes, len(known))
    unit = f"% {standing.figure.unit}" if standing.figure.percent else standing.figure.unit
    label(axes, standing.figure.title, unit, "")
    told = "; ".join(f"{name} {cell(standing, name)}" for name in known)
    drawn = to_svg(made, standing.figure.title, told)
    end = {"lower": "Lower is better.", "higher": "Higher is better."}.get(standing.figure.better or "", "")
    filled = "Filled: the best, and what is not separated from it." if standing.best is not None else ""
    return page.figure(drawn, " ".join(part for part in (end, filled) if part))


def bars(title: str, unit: str, values: Mapping[str, float], caption: str) -> Markup:
    """A bar an entry, from zero."""
    made, (axes,) = figure(WIDTH, AROUND + ROW * len(values))
    for place, (name, value) in enumerate(values.items()):
        colour = LIGHT[SERIES[(place + 1) % len(SERIES)]]  # the first is the start's, which is not trained
        axes.barh(place, value, height=0.3, color=colour, alpha=0.55)
        _name(axes, place, f"{name}  {value:,.3g}")
    _rows(axes, len(values))
    axes.set_xlim(0, 1.05 * max(values.values(), default=1.0) or 1.0)
    label(axes, title, unit, "")
    return page.figure(to_svg(made, title, "; ".join(f"{n} {v:,.3g} {unit}" for n, v in values.items())), caption)


def _name(axes: Axes, place: int, name: str) -> None:
    """Write a result's name above its row, where no length of it can push the axes aside."""
    axes.annotate(
        plain(name, 40),
        (0.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(2, 7),
        textcoords="offset points",
        fontsize=8,
        color=LIGHT[INK],
    )


def _rows(axes: Axes, count: int) -> None:
    """The first result on top, and no numbers beside the rows."""
    axes.set_ylim(count - 0.65, -0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.tick_params(axis="x", colors=LIGHT[MUTED])
    axes.margins(x=0.06)
