"""`truing data`: looking at training data before it is trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from truing.data.settings import FormatName

FILE = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Check training data before it is trained on."""


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--for", "purpose", metavar="METHOD", help="What the rows are to train, such as sft, dpo or kto; else as they are."
)
@click.option("--model", metavar="MODEL", help="Check tokens too, with the tokenizer of this folder or hub id.")
@click.option("--template", metavar="NAME", help="Chat template; the tokenizer's own by default.")
@click.option("--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens of a row.")
@click.option("--test", multiple=True, metavar="FILE", help="Test data, none of whose prompts may be trained on.")
@click.option("--format", type=click.Choice(get_args(FormatName)), help="What the columns mean; else it is guessed.")
@click.option("--columns", multiple=True, metavar="OURS=THEIRS", help="A column that is called otherwise; repeatable.")
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


def _pairs(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = [column.partition("=") for column in columns]
    if not all(ours and theirs for ours, _, theirs in pairs):
        raise click.UsageError("--columns is written OURS=THEIRS, such as completion=response")
    return {ours: theirs for ours, _, theirs in pairs}


def _write_json(content: dict[str, object], target: str) -> None:
    import json

    from truing.core.errors import MachineError

    text = json.dumps(content, indent=2, ensure_ascii=False)
    if target == "-":
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as fault:
        raise MachineError(f"cannot write {target}: {fault.strerror}") from fault
