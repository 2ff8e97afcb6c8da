"""`truing data`: what is done to files of data before anything is trained on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args

import click

from truing.data.format_names import FormatName

FILE = click.Path(path_type=Path)
FORMAT = click.option(
    "--format", type=click.Choice(get_args(FormatName)), help="What the columns mean; else it is guessed."
)
COLUMNS = click.option(
    "--columns", multiple=True, metavar="OURS=THEIRS", help="A column that is called otherwise; repeatable."
)
FORCE = click.option("--force", is_flag=True, help="Replace files that exist.")
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".gz")


@click.group()
def data() -> None:
    """Check, convert, split and clean data before they are trained on. No file that is given is ever changed."""


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--for", "purpose", metavar="METHOD", help="What the rows are to train, such as sft, dpo or kto; else as they are."
)
@click.option("--model", metavar="MODEL", help="Check tokens too, with the tokenizer of this folder or hub id.")
@click.option("--template", metavar="NAME", help="Chat template; the tokenizer's own by default.")
@click.option("--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens of a row.")
@click.option("--test", multiple=True, metavar="FILE", help="Test data, none of whose prompts may be trained on.")
@FORMAT
@COLUMNS
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Only the first so many rows.")
@click.option("--show", type=click.IntRange(min=0), default=2, show_default=True, help="Rows to show as trained.")
@click.option("--json", "json_file", metavar="FILE|-", help="Write the findings as JSON; - prints nothing else.")
@click.option("--html", "html_file", type=FILE, metavar="FILE", help="Write a page.")
def check(
    files: tuple[str, ...],
    purpose: str | None,
    model: str | None,
    template: str | None,
    max_length: int,
    test: tuple[str, ...],
    format: FormatName | None,
    columns: tuple[str, ...],
    limit: int | None,
    show: int,
    json_file: str | None,
    html_file: Path | None,
) -> None:
    """Say whether FILES are fit to be trained on, what is wrong with which rows, and how to mend it.

    Exits with 2 where training would go wrong, with 0 where all is well or there are warnings only.
    """
    from rich.console import Console

    from truing.audit.audit import audit
    from truing.audit.page import write_page
    from truing.audit.terminal import follow
    from truing.audit.terminal import show as print_audit
    from truing.training.progress import reporter

    found = audit(
        files,
        purpose=purpose,
        model=model,
        template=template,
        max_length=max_length,
        test=test,
        columns=_pairs(columns),
        format=format,
        limit=limit,
        show=show,
        on_progress=follow(reporter()),
    )
    if html_file is not None:
        write_page(found, html_file)
    if json_file is not None:
        _write_json(found.as_json(), json_file)
    if json_file != "-":
        print_audit(found, Console(width=None if sys.stdout.isatty() else 120, highlight=False))
    if found.verdict == "stop":
        sys.exit(2)


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, metavar="FORMAT", help="Such as messages, comparison, judgement.")
@click.option("--output", required=True, type=FILE, metavar="FILE", help=".json, .jsonl, .csv or .parquet; also .gz.")
@FORMAT
@COLUMNS
@FORCE
@click.option(
    "--margin", type=click.FloatRange(min=0), default=0.0, help="Of scores: pairs that differ by at least this."
)
@click.option("--threshold", type=float, help="Of scores: answers are desirable from this on.")
@click.option("--lossy", is_flag=True, help="Write also what the format cannot hold all of; says what is lost.")
def convert(
    files: tuple[str, ...],
    to: str,
    output: Path,
    format: FormatName | None,
    columns: tuple[str, ...],
    force: bool,
    margin: float,
    threshold: float | None,
    lossy: bool,
) -> None:
    """Write the rows of all FILEs in another format, and refuse to lose anything unasked."""
    from truing.core.text import harmless
    from truing.data.rewriting import Reading
    from truing.data.rewriting import convert as rewrite
    from truing.data.scores import ScoreRule

    rule = ScoreRule(margin, threshold)
    for line in rewrite(files, to, output, Reading(format, _pairs(columns)), rule, lossy=lossy, force=force):
        click.echo(harmless(line))


@data.command()
@click.argument("file")
@click.option("--output", type=FILE, metavar="DIR", help="Write DIR/train and DIR/test, of the same type as FILE.")
@click.option("--train", type=FILE, metavar="FILE", help="Or name the two files.")
@click.option("--test", type=FILE, metavar="FILE")
@click.option(
    "--test-share",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Of the prompts.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed tests on other prompts.")
@click.option("--near", is_flag=True, help="Keep prompts that are nearly the same on one side too.")
@FORMAT
@COLUMNS
@FORCE
def split(
    file: str,
    output: Path | None,
    train: Path | None,
    test: Path | None,
    test_share: float,
    seed: int,
    near: bool,
    format: FormatName | None,
    columns: tuple[str, ...],
    force: bool,
) -> None:
    """Split FILE into rows to train and to test on; no prompt is on both sides, and rows are written unchanged."""
    from truing.audit.splitting import split as divide
    from truing.core.text import harmless
    from truing.data.rewriting import Reading

    if (output is None) == (train is None or test is None) or (output is not None and (train or test)):
        raise click.UsageError("give --output DIR, or --train FILE and --test FILE")
    if output is not None:
        endings = "".join(part for part in Path(file).suffixes[-2:] if part.lower() in ENDINGS) or ".jsonl"
        train, test = output / f"train{endings}", output / f"test{endings}"
    assert train is not None
    assert test is not None
    reading = Reading(format, _pairs(columns))
    for line in divide(file, train, test, reading, share=test_share, seed=seed, near=near, force=force):
        click.echo(harmless(line))


@data.command()
@click.argument("file")
@click.option("--output", required=True, type=FILE, metavar="FILE", help=".json, .jsonl, .csv or .parquet; also .gz.")
@click.option(
    "--log", type=FILE, metavar="FILE", help="OUTPUT.dropped.jsonl by default: row, check and reason of each."
)
@click.option("--for", "purpose", metavar="METHOD", help="What the rows are to train, such as sft, dpo or kto.")
@click.option("--near", is_flag=True, help="Drop rows that nearly repeat an earlier one too.")
@click.option(
    "--contradictions",
    type=click.Choice(["drop", "majority"]),
    default="drop",
    show_default=True,
    help="Drop all rows that contradict each other, or keep what most of them say.",
)
@click.option("--model", metavar="MODEL", help="Drop also what --max-length leaves nothing of.")
@click.option("--template", metavar="NAME", help="Chat template; the tokenizer's own by default.")
@click.option("--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens of a row.")
@FORMAT
@COLUMNS
@FORCE
def clean(
    file: str,
    output: Path,
    log: Path | None,
    purpose: str | None,
    near: bool,
    contradictions: Literal["drop", "majority"],
    model: str | None,
    template: str | None,
    max_length: int,
    format: FormatName | None,
    columns: tuple[str, ...],
    force: bool,
) -> None:
    """Write a copy of FILE without unusable rows, exact repeats and contradictions, and a log that says why."""
    from truing.audit.cleaning import Request
    from truing.audit.cleaning import clean as write_clean
    from truing.audit.terminal import follow
    from truing.core.text import harmless
    from truing.data.rewriting import Reading
    from truing.training.progress import reporter

    reading = Reading(format, _pairs(columns))
    request = Request(file, reading, purpose, model, template, max_length, near, contradictions)
    for line in write_clean(request, output, log, force=force, on_progress=follow(reporter())):
        click.echo(harmless(line))


def _pairs(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = [column.partition("=") for column in columns]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise click.UsageError("--columns is written OURS=THEIRS, such as completion=response")
    return {ours: theirs for ours, _, theirs in pairs}


def _write_json(content: dict[str, object], target: str) -> None:
    import json

    from truing.core.errors import MachineError

    if target == "-":
        click.echo(json.dumps(content, indent=2))  # in ASCII: it may be a terminal, and the words are the data's
        return
    try:
        Path(target).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as fault:
        raise MachineError(f"cannot write {target}: {fault.strerror}") from fault
