"""`truing data`: what is done to files of data before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from truing.data.rewriting import Reading

FILE = click.Path(path_type=Path)
ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".gz")


@click.group()
def data() -> None:
    """Check, convert, split and clean files of data. No file that is given is ever changed."""


def _reading(command: Any) -> Any:
    """The options that say how files are read."""
    options = [
        click.option("--format", "format_name", metavar="NAME", help="What the columns mean, if not guessed."),
        click.option(
            "--columns", "pairs", multiple=True, metavar="OURS=THEIRS", help="What a column is called; repeatable."
        ),
        click.option("--force", is_flag=True, help="Replace files that exist."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _read_as(format_name: str | None, pairs: tuple[str, ...]) -> Reading:
    from truing.data.rewriting import Reading

    split = [pair.partition("=") for pair in pairs]
    for pair, (ours, sign, theirs) in zip(pairs, split, strict=True):
        if not (ours and sign and theirs):
            raise click.UsageError(f"--columns {pair}: expected our name and the file's, such as completion=response")
    return Reading(format_name, {ours: theirs for ours, _, theirs in split})


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", required=True, metavar="FORMAT", help="Such as messages, comparison, judgement.")
@click.option("--output", required=True, type=FILE, metavar="FILE", help=".json, .jsonl, .csv or .parquet; also .gz.")
@_reading
@click.option(
    "--margin", type=click.FloatRange(min=0), default=0.0, help="Of scores: pairs that differ by at least this."
)
@click.option("--threshold", type=float, help="Of scores: answers are desirable from this on.")
@click.option("--lossy", is_flag=True, help="Write also what the format cannot hold all of; says what is lost.")
def convert(
    files: tuple[str, ...],
    to: str,
    output: Path,
    format_name: str | None,
    pairs: tuple[str, ...],
    force: bool,
    margin: float,
    threshold: float | None,
    lossy: bool,
) -> None:
    """Write the rows of all FILEs in another format, and refuse to lose anything unasked."""
    from truing.core.text import harmless
    from truing.data.rewriting import convert as rewrite
    from truing.data.scores import ScoreRule

    rule = ScoreRule(margin, threshold)
    for line in rewrite(files, to, output, _read_as(format_name, pairs), rule, lossy=lossy, force=force):
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
@_reading
def split(
    file: str,
    output: Path | None,
    train: Path | None,
    test: Path | None,
    test_share: float,
    seed: int,
    near: bool,
    format_name: str | None,
    pairs: tuple[str, ...],
    force: bool,
) -> None:
    """Split FILE into rows to train and to test on; no prompt is on both sides, and rows are written unchanged."""
    from truing.audit.splitting import split as divide
    from truing.core.text import harmless

    if (output is None) == (train is None or test is None) or (output is not None and (train or test)):
        raise click.UsageError("give --output DIR, or --train FILE and --test FILE")
    if output is not None:
        endings = "".join(part for part in Path(file).suffixes[-2:] if part.lower() in ENDINGS) or ".jsonl"
        train, test = output / f"train{endings}", output / f"test{endings}"
    assert train is not None
    assert test is not None
    reading = _read_as(format_name, pairs)
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
@_reading
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
    format_name: str | None,
    pairs: tuple[str, ...],
    force: bool,
) -> None:
    """Write a copy of FILE without unusable rows, exact repeats and contradictions, and a log that says why."""
    from truing.audit.cleaning import Request
    from truing.audit.cleaning import clean as write_clean
    from truing.core.text import harmless

    reading = _read_as(format_name, pairs)
    request = Request(file, reading, purpose, model, template, max_length, near, contradictions)
    for line in write_clean(request, output, log, force=force, on_progress=lambda what, done, total: None):
        click.echo(harmless(line))
