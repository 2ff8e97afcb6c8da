"""The audit as a page of its own, in the look of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from truing.audit.amounts import Histogram
from truing.audit.audit import Audit
from truing.audit.finding import Finding
from truing.audit.terminal import LEVELS, facts_table, verdict_line
from truing.core.errors import MachineError
from truing.data.decoded import DecodedRow
from truing.pages import page
from truing.pages.page import Section
from truing.pages.palette import LIGHT
from truing.pages.plotting import figure, label, to_svg

WIDTH, HEIGHT = 4.6, 2.6
"""Inches of a histogram."""

LISTED = 200
"""Rows that a finding names."""


def write_page(audit: Audit, target: Path) -> None:
    """Write the page. Raises MachineError where that fails."""
    try:
        target.write_text(audit_page(audit), encoding="utf-8")
    except OSError as fault:
        raise MachineError(f"cannot write {target}: {fault.strerror}") from fault


def audit_page(audit: Audit) -> str:
    """The page as HTML."""
    sections = [Section("Verdict", "verdict", (_verdict(audit), *_complaints(audit.findings)))]
    sections.append(Section("What is sound", "sound", (_sound(audit.findings),)))
    if audit.histograms:
        unit = audit.facts.length_unit
        drawn = page.grid([_histogram(histogram, unit) for histogram in audit.histograms])
        sections.append(Section("Lengths", "lengths", (drawn,)))
    if audit.shown:
        lead = page.paragraph("Decoded from the very tokens. What is underlined is trained.")
        sections.append(Section("As it is trained", "trained", (lead, *(_row(row) for row in audit.shown))))
    if audit.facts.rows:
        sections.append(Section("Facts", "facts", (page.table(["", ""], facts_table(audit.facts)),)))
    return page.page("Is the data sound?", ", ".join(audit.files), sections)


def _verdict(audit: Audit) -> Markup:
    return page.good(verdict_line(audit)) if audit.verdict == "ok" else page.warning(verdict_line(audit))


def _complaints(findings: Sequence[Finding]) -> list[Markup]:
    parts = []
    for level, word, _ in LEVELS[:-1]:
        for finding in findings:
            if finding.level == level:
                parts += [page.heading(f"{word}: {finding.check}"), page.paragraph(finding.sentence)]
                parts += _quotes(finding)
                parts.append(page.note(f"Remedy: {finding.remedy}"))
    return parts


def _quotes(finding: Finding) -> list[Markup]:
    if not finding.rows:
        return []
    quoted = [(str(row), text) for row, text in zip(finding.rows, finding.examples, strict=False)]
    found = [page.table(["row", "text"], quoted, texts={1})] if quoted else []
    if len(finding.rows) > len(quoted):
        listed = [str(row) for row in finding.rows[:LISTED]]
        more = f" (the first {LISTED})" if len(finding.rows) > LISTED else ""
        found.append(page.folded(f"All {len(finding.rows):,} rows{more}", [page.paragraph(", ".join(listed))]))
    return found


def _sound(findings: Sequence[Finding]) -> Markup:
    rows = [(finding.check, finding.sentence) for finding in findings if finding.level == "ok"]
    return page.table(["check", "what was found"], rows)


def _histogram(histogram: Histogram, unit: str) -> Markup:
    made, (axes,) = figure(WIDTH, HEIGHT)
    axes.stairs(histogram.counts, histogram.edges, fill=True, color=LIGHT["series-1"])
    label(axes, histogram.name.capitalize(), unit, "how many")
    described = f"How many {histogram.name} have how many {unit}; {sum(histogram.counts):,} in all."
    return page.figure(to_svg(made, f"Lengths of {histogram.name}", described))


def _row(row: DecodedRow) -> Markup:
    lines = [part for name, parts in row.lines for part in (page.heading(name), page.marked(parts))]
    return page.folded(row.title, lines)
