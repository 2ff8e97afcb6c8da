"""Colours by role, for light and for dark.

The series are Okabe and Ito's, darkened or lightened until each has a contrast of 3 to 1 with its background; who sees
no colour tells them apart by dash and marker.
"""

from __future__ import annotations

from collections.abc import Mapping

INK, MUTED, GRID = "ink", "muted", "grid"
PAPER, SURFACE, GOOD, WARN, BAND = "paper", "surface", "good", "warn", "band"
SERIES = tuple(f"series-{number}" for number in range(1, 9))

LIGHT: Mapping[str, str] = {
    INK: "#1b1f24",
    MUTED: "#57606a",
    GRID: "#dde1e6",
    PAPER: "#ffffff",
    SURFACE: "#f6f8fa",
    GOOD: "#1a6e3a",
    WARN: "#a03500",
    BAND: "#2b9e77",
    "series-1": "#0072b2",
    "series-2": "#d05a00",
    "series-3": "#008a64",
    "series-4": "#b4538c",
    "series-5": "#a87100",
    "series-6": "#2b88bd",
    "series-7": "#4d5258",
    "series-8": "#85760a",
}
DARK: Mapping[str, str] = {
    INK: "#e6e9ed",
    MUTED: "#9aa4af",
    GRID: "#343b43",
    PAPER: "#14171b",
    SURFACE: "#1d2126",
    GOOD: "#6fd394",
    WARN: "#ff9f6b",
    BAND: "#2fbf8f",
    "series-1": "#4fa8e5",
    "series-2": "#ff8f4d",
    "series-3": "#30c79b",
    "series-4": "#e59aca",
    "series-5": "#f0b53a",
    "series-6": "#86cdf7",
    "series-7": "#c9ced4",
    "series-8": "#e5da62",
}


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two hex colours, 1 to 21 (WCAG 2.2).

    >>> round(contrast("#000000", "#ffffff"), 3)
    21.0
    """
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def properties(colours: Mapping[str, str]) -> str:
    """Declarations of the custom properties, such as `--ink:#1b1f24`."""
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
