"""Writes the reference pages from the code itself; with `--check` it only tells whether one is old."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from truing.build.methods import describe
from truing.cli.main import cli
from truing.core.settings import settings_in
from truing.objectives.registry import discover
from truing.recipe.schema import Recipe, Stage

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/reference.py from the code; edit the docstrings there. -->\n\n"


def recipe_page() -> str:
    """Every key of a recipe with its type, default and meaning."""
    lines = [
        "# Recipe keys",
        "",
        "A recipe is one YAML file. With several `stages`, each takes from the top what it does not say itself and",
        "starts from the result of the stage before. `truing train RECIPE --set optim.lr=1e-5` overrides a key;",
        "`--set stages.dpo.optim.lr=1e-6` one of a stage. The run directory holds the recipe with every default",
        "written out.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
        f"| `output` | null | {_text(Recipe.model_fields['output'].description)} |",
        f"| `stages` | the file itself is one stage | {_text(Recipe.model_fields['stages'].description)} |",
        *_rows(Stage, ""),
    ]
    return "\n".join(lines) + "\n"


def _rows(cls: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        inner = settings_in(field.annotation)
        if inner is not None:
            yield f"| **`{prefix}{name}`** | | {_text(field.description)} |"
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
        yield f"| `{prefix}{name}` | {default} | {_text(field.description)} |"


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[]" if not value else str(list(value))
    return "''" if value == "" else str(value)


def _text(description: str | None) -> str:
    return " ".join((description or "").split()).replace("|", "\\|")


def methods_page() -> str:
    """What `truing methods NAME` prints, for all of them."""
    parts = ["# Methods\n\nThe same text as `truing methods NAME`.\n"]
    parts += [f"## {name}\n\n```text\n{describe(name)}\n```\n" for name in discover()]
    return "\n".join(parts)


def command_page() -> str:
    """The help of every command."""
    parts = ["# Command line\n", _help(cli, "truing")]
    parts += [_help(command, f"truing {name}") for name, command in cli.commands.items()]
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100)
    return f"```text\n$ {name} --help\n{command.get_help(context)}\n```\n"


PAGES = {"recipe.md": recipe_page, "methods.md": methods_page, "commands.md": command_page}


def main() -> None:
    """Write the pages, or with `--check` exit 1 if one does not say what the code says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = []
    for name, page in PAGES.items():
        content = NOTE + page()
        file = HERE / name
        if check and (not file.is_file() or file.read_text(encoding="utf-8") != content):
            old.append(name)
        elif not check:
            file.write_text(content, encoding="utf-8")
    if old:
        sys.exit(f"docs are older than the code: {', '.join(old)}; run `make docs`")


if __name__ == "__main__":
    main()
