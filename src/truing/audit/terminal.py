"""The audit in a terminal: the verdict, what is wrong and how to mend it, what is sound, and the facts."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from truing.audit.audit import Audit, Progress
from truing.audit.facts import DataFacts
from truing.audit.finding import Finding, Level, percent
from truing.core.interval import Interval
from truing.core.methods import KINDS
from truing.core.text import harmless
from truing.data.decoded import DecodedRow
from truing.data.faults import counted
from truing.training.progress import Reporter

LEVELS: tuple[tuple[Level, str, str], ...] = (
    ("stop", "STOP", "bold red"),
    ("strong", "STRONG", "bold yellow"),
    ("warn", "warn", "yellow"),
    ("ok", "ok", "green"),
)
"""In the order in which they are shown, with their words and styles."""

VERDICTS = {
    "ok": ("sound", "bold green"),
    "warn": ("usable, with warnings", "bold yellow"),
    "stop": ("not fit to train on", "bold red"),
}


def verdict_line(audit: Audit) -> str:
    """The verdict in a sentence."""
    facts = audit.facts
    kinds = (
        (facts.demonstrations, "demonstration"),
        (facts.comparisons, "comparison"),
        (facts.judgements, "judgement"),
        (facts.bare_prompts, "prompt"),
    )
    held = ", ".join(counted(count, kind) for count, kind in kinds if count) or "no usable rows"
    if not facts.rows:
        return f"{VERDICTS[audit.verdict][0]}: {', '.join(audit.files)}, {held}"
    purpose = f"as {audit.purpose}s" if audit.purpose in KINDS else f"for {audit.purpose}"
    return f"{VERDICTS[audit.verdict][0]}: {', '.join(audit.files)}, {held}, checked {purpose}"


def show(audit: Audit, console: Console) -> None:
    """Print the audit."""
    console.print(Text(harmless(verdict_line(audit)), VERDICTS[audit.verdict][1]))
    for level, word, style in LEVELS:
        found = [finding for finding in audit.findings if finding.level == level]
        if found and level == "ok":
            console.print()
            console.print(_sound(found, word, style))
        for finding in found if level != "ok" else ():
            console.print()
            _show_finding(finding, word, style, console)
    if audit.shown:
        console.print(Text("\nas it is trained; ⟦brackets⟧ hold the trained tokens", "bold"))
    for row in audit.shown:
        _show_row(row, console)
    if audit.facts.rows:
        console.print()
        console.print(_facts(audit.facts))


def follow(reporter: Reporter) -> Progress:
    """A progress callback that shows each piece of work as a bar of its own."""
    current = ""

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal current
        if what != current:
            reporter.begin(what, total)
            current = what
        reporter.advance(done)
        if done >= total:
            reporter.end()
            current = ""

    return on_progress


def _show_finding(finding: Finding, word: str, style: str, console: Console) -> None:
    console.print(_line(word, style, finding.check, finding.sentence))
    for row, quote in zip(finding.rows, finding.examples, strict=False):
        text = harmless(quote.removeprefix(f"{row}: "))
        console.print(_indented(Text.assemble((harmless(f"{row}  "), "cyan"), (text, "dim"))))
    if len(finding.rows) > len(finding.examples) > 0:
        rest = len(finding.rows) - len(finding.examples)
        console.print(_indented(Text(f"and {counted(rest, 'more row')}", "dim")))
    if finding.remedy:
        console.print(_indented(Text(f"→ {harmless(finding.remedy)}")))


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 8), expand=False)


def _line(word: str, style: str, check: str, sentence: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=6)
    grid.add_column()
    grid.add_row(Text(word, style), Text.assemble((check, "bold"), ": ", harmless(sentence)))
    return grid


def _sound(findings: list[Finding], word: str, style: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=6)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for finding in findings:
        grid.add_row(Text(word, style), finding.check, Text(harmless(finding.sentence), "dim"))
    return grid


def _show_row(row: DecodedRow, console: Console) -> None:
    console.print(Text(harmless(row.title), "cyan"))
    for name, parts in row.lines:
        line = Text(f"{name}: ", "bold")
        for text, trained in parts:
            line.append(f"⟦{harmless(text)}⟧" if trained else harmless(text), "green" if trained else "dim")
        console.print(Padding(line, (0, 0, 0, 2), expand=False))


def _facts(facts: DataFacts) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for name, value in facts_table(facts):
        grid.add_row(name, value)
    return grid


def facts_table(facts: DataFacts) -> list[tuple[str, str]]:
    """The facts in words; what does not apply is left out."""
    unit = facts.length_unit
    rows = [
        ("rows", f"{facts.rows:,} with {counted(facts.prompts, 'distinct prompt')}"),
        ("several turns", percent(facts.multi_turn)),
        ("repeats", f"{percent(facts.duplicates)} exact, {percent(facts.near_duplicates)} near"),
        ("prompt", f"median {facts.prompt_length.p50:,} {unit}, longest {facts.prompt_length.max:,}"),
        ("completion", f"median {facts.completion_length.p50:,} {unit}, longest {facts.completion_length.max:,}"),
        ("longest row", f"{facts.longest:,} {unit}, which memory has to be planned for"),
    ]
    if facts.desirable or facts.undesirable:
        rows.append(("labels", f"{facts.desirable:,} desirable, {facts.undesirable:,} undesirable"))
    if facts.length_ratio is not None:
        rows.append(("chosen / rejected", f"{facts.length_ratio:.2f} times as long"))
    for name, interval in (
        ("longer wins", facts.longer_wins),
        ("words decide", facts.shortcut),
        ("flipped labels", facts.noise),
    ):
        if interval is not None:
            rows.append((name, _range(interval)))
    return rows


def _range(interval: Interval) -> str:
    return f"{percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)})"
