"""What a report says of one run beside its curves: samples, data, memory and time, environment, recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from truing.pages import page
from truing.report.runs import Run, listed, mapping
from truing.training.figures import number

MOST_PROMPTS = 8
MOST_SAMPLES = 12
"""Of one prompt; the first and the last are always among them."""
SAMPLE_CHARACTERS = 1200
MOST_ROWS_NAMED = 20


def samples(run: Run) -> list[Markup]:
    """Completions over time, a table a prompt."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for sample in run.samples:
        by_prompt.setdefault(str(sample.get("prompt", "")), []).append(sample)
    parts = []
    for prompt, found in list(by_prompt.items())[:MOST_PROMPTS]:
        rows = [
            [
                shown(sample.get("step")),
                page.text(str(sample.get("completion", "")), SAMPLE_CHARACTERS),
                shown(sample.get("tokens")),
                "yes" if sample.get("ended") is True else "cut",
            ]
            for sample in spread(found, MOST_SAMPLES)
        ]
        parts.append(page.preformatted(prompt[-SAMPLE_CHARACTERS:]))
        parts.append(page.table(["step", "completion", "tokens", "ended"], rows, numeric={0, 2}, texts={1}))
    if len(by_prompt) > MOST_PROMPTS:
        parts.append(page.note(f"{len(by_prompt) - MOST_PROMPTS} more prompts are in samples.jsonl."))
    return parts


def spread(rows: Sequence[Mapping[str, Any]], most: int) -> Sequence[Mapping[str, Any]]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def data(run: Run) -> list[Markup]:
    """What was read, dropped and cut."""
    if not run.data:
        return []
    files = [mapping(file) for file in listed(run.data.get("files"))]
    rows = [[shown(file.get("name")), shown(file.get("format")), shown(file.get("rows"))] for file in files]
    parts = [page.table(["file", "format", "rows"], rows, numeric={2})] if rows else []
    counts = mapping(run.data.get("rows"))
    trees = mapping(run.data.get("trees"))
    said = [
        f"{shown(counts.get('used'))} of {shown(counts.get('read'))} rows used: {shown(trees.get('train'))} trained "
        f"on, {shown(trees.get('held_out'))} held out"
    ]
    tokens = mapping(run.data.get("tokens"))
    for kind in ("prompt", "completion"):
        lengths = mapping(tokens.get(kind))
        if number(lengths.get("max")):
            said.append(
                f"{kind} tokens: median {shown(lengths.get('p50'))}, 95 % up to {shown(lengths.get('p95'))}, "
                f"longest {shown(lengths.get('max'))}"
            )
    said += map(str, listed(run.data.get("notes")))
    parts.append(page.bullets(said))
    parts += _dropped(mapping(run.data.get("dropped")))
    return parts


def _dropped(reasons: Mapping[str, Any]) -> Iterator[Markup]:
    rows = []
    for reason, files in reasons.items():
        for file, numbers in mapping(files).items():
            named = listed(numbers)
            shorter = ", ".join(map(str, named[:MOST_ROWS_NAMED])) + (" …" if len(named) > MOST_ROWS_NAMED else "")
            rows.append([reason, str(file), str(len(named)), shorter])
    if rows:
        yield page.table(["dropped because", "file", "rows", "which"], rows, numeric={2})


def memory_and_time(run: Run) -> list[Markup]:
    """Planned memory and time beside what was measured, and how fast it went."""
    planned = {name: value for name, found in mapping(run.plan.get("bytes")).items() if (value := number(found))}
    rows = [[f"planned: {name}", in_bytes(value)] for name, value in planned.items()]
    if len(planned) > 1:
        rows.append(["planned, together", in_bytes(sum(planned.values()))])
    if run.peak_memory_bytes is not None:
        rows.append(["measured peak of the process", in_bytes(run.peak_memory_bytes)])
    if (there := number(run.plan.get("available_bytes"))) is not None:
        rows.append(["memory there is", in_bytes(there)])
    if (seconds := number(run.plan.get("seconds"))) is not None:
        rows.append(["planned time in steps", in_time(seconds)])
    if run.seconds > 0:
        tokens = sum(value for row in run.rows if (value := number(row.get("tokens"))) is not None)
        rows.append(["time in steps", in_time(run.seconds)])
        rows.append(["tokens", f"{tokens:,.0f}"])
        rows.append(["tokens a second", f"{tokens / run.seconds:,.0f}"])
    if (trained := number(run.plan.get("trained_parameters"))) is not None:
        rows.append(["trained parameters", f"{trained:,.0f}"])
    if not rows:
        return []
    moment = run.plan.get("moment")
    why = f"The plan is for the heaviest moment of a step: {moment}." if isinstance(moment, str) else ""
    return [page.table(["", ""], rows, numeric={1}), *([page.paragraph(why)] if why else [])]


def forgetting(run: Run) -> list[Markup]:
    """What the stage cost elsewhere."""
    before, after = number(run.forgetting.get("loss_before")), number(run.forgetting.get("loss_after"))
    if before is None or after is None:
        return []
    said = f"On general text the loss went from {before:.4g} to {after:.4g} nats a token"
    kl = number(run.forgetting.get("kl"))
    return [page.paragraph(f"{said}." if kl is None else f"{said}, and the KL to the start is {kl:.3g} nats a token.")]


def parity(run: Run) -> list[Markup]:
    """Whether what was written answers as what was trained."""
    rows = [
        [shown(each.get("form")), figure(number(each.get("largest"))), _share(number(each.get("agreement")))]
        for each in map(mapping, listed(run.parity.get("differences")))
    ]
    if not rows:
        return []
    complaint = run.parity.get("complaint")
    said = [page.warning(f"The result is written, but {complaint}.")] if complaint else []
    why = page.paragraph(
        "The result as it was served, read by transformers alone, against the policy in memory: the largest difference "
        "of a log-prob (of a reward model: a score), and how often both have the same likeliest token."
    )
    return [why, page.table(["result", "largest difference", "same token"], rows, numeric={1, 2}), *said]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def environment(run: Run) -> list[Markup]:
    """Versions, device and hashes."""
    rows = [[key, shown(value)] for key, value in flatten(run.environment)]
    return [page.folded("Environment", [page.table(["", ""], rows)])] if rows else []


def recipe(run: Run) -> list[Markup]:
    """The command that repeats the run, the one that continues it, and the whole recipe."""
    if not run.recipe_text:
        return []
    parts = [repeat(run.path)]
    if run.state == "stopped":
        parts.append(page.preformatted(f"truing resume {shlex.quote(str(run.path))}"))
    return [*parts, page.folded("The recipe, with every default written out", [page.preformatted(run.recipe_text)])]


def repeat(path: Path) -> Markup:
    """The command that does what a run directory's recipe says once more."""
    recipe, again = shlex.quote(str(path / "recipe.yaml")), shlex.quote(f"{path}-again")
    return page.preformatted(f"truing train {recipe} --output {again}")


def flatten(values: Mapping[str, Any], prefix: str = "", most: int = 400) -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings joined by dots, with their values; no deeper than six and at most so many."""
    for key, value in list(values.items())[:most]:
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name.count(".") < 5:
            yield from flatten(value, f"{name}.", most)
        else:
            yield name, value


def shown(value: object) -> str:
    """A value of a file for a person.

    >>> shown(None), shown(1234567), shown(0.25), shown([1])
    ('–', '1,234,567', '0.25', '[1]')
    """
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else "a very large number"
    if isinstance(value, float):
        return figure(value)
    return json.dumps(value, ensure_ascii=False, default=str)[: page.LONGEST_TEXT]


def figure(value: float | None) -> str:
    """A figure of metrics.jsonl to four digits.

    >>> figure(0.123456), figure(12345.6), figure(None), figure(-1e-05)
    ('0.1235', '12,346', '–', '−1e-05')
    """
    if value is None:
        return "–"
    return (f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}").replace("-", "−", 1 if value < 0 else 0)


def in_bytes(value: float) -> str:
    """Bytes with a unit.

    >>> in_bytes(12_300_000), in_bytes(2.5e9), in_bytes(46_240)
    ('12 MB', '2.50 GB', '46 kB')
    """
    if value >= 1e9:
        return f"{value / 1e9:,.2f} GB"
    return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"


def in_time(seconds: float) -> str:
    """A duration.

    >>> in_time(12.34), in_time(125), in_time(7300)
    ('12 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
