"""Writes the reference pages from the code itself; with `--check` it only tells whether one is old."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import click
from pydantic import BaseModel

from truing.build.methods import MethodText, written
from truing.cli.main import cli
from truing.core.settings import settings_in, use_of
from truing.core.trees import ExampleKind
from truing.objectives.base import Objective
from truing.objectives.registry import discover
from truing.recipe.schema import Recipe, Stage

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/reference.py from the code; edit the docstrings there. -->\n\n"

METRICS = """\
## Reading the figures

A line of `metrics.jsonl` is one step; the first is that of the first step before its update. The pages speak of these
figures:

| figure | meaning |
|---|---|
| `loss` | of the step, as the page's formula says |
| `rewards/chosen`, `rewards/rejected` | mean reward that the method gives an answer; mostly β log π/π_ref |
| `rewards/margins`, `rewards/accuracies` | their difference, and how often it is positive |
| `logps/chosen`, `logps/rejected` | mean log-prob of an answer, summed over its tokens |
| `eval_` before any of these | the same on held-out rows, which `data.holdout` or `data.eval_path` gives |
| `grad_norm` | of the step's gradient, before it is scaled down to `optim.max_grad_norm` |

Of judged answers `chosen` are the desirable and `rejected` the undesirable. Log-probs and log-ratios are in nats.
Typical values are those of common models and data, not limits: compare a run with its own first lines and with the
samples in `samples.jsonl`, for a lower loss is not yet a better model.
"""


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
        f"| `output` | null | {_cell(Recipe.model_fields['output'].description)} |",
        f"| `stages` | the file itself is one stage | {_cell(Recipe.model_fields['stages'].description)} |",
        *_rows(Stage, ""),
    ]
    return "\n".join(lines) + "\n"


def _rows(cls: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        inner = settings_in(field.annotation)
        if inner:
            yield f"| **`{prefix}{name}`** | | {_cell(field.description)} |"
            for section in inner:
                which = f"[{use_of(section)}]" if len(inner) > 1 else ""
                yield from _rows(section, f"{prefix}{name}{which}.")
            continue
        default = "required" if field.is_required() else f"`{written(field.default)}`"
        yield f"| `{prefix}{name}` | {default} | {_cell(field.description)} |"


def _cell(description: str | None) -> str:
    """Text that fits into a cell of a table."""
    return " ".join((description or "").split()).replace("|", "\\|")


def methods_index() -> str:
    """All methods in one table, and what their pages' figures mean."""
    known = discover()
    kinds = get_args(ExampleKind)
    rows = [
        f"| [{name}](methods/{name}.md) | {_cell(cls.purpose)} | {cls.examples}s | {_linked(cls.paper)} |"
        for name, cls in sorted(known.items(), key=lambda item: (kinds.index(item[1].examples), item[0]))
    ]
    lines = [
        "# Methods",
        "",
        "A page for each says what `truing methods NAME` prints.",
        "",
        "| method | for | learns from | source |",
        "|---|---|---|---|",
        *rows,
        "",
        METRICS,
    ]
    return "\n".join(lines)


def method_page(objective: type[Objective]) -> str:
    """What `truing methods NAME` prints, with links."""
    text = MethodText.of(objective)
    file = f"src/{objective.__module__.replace('.', '/')}.py"
    facts = [
        *text.facts,
        ("code", f"[{Path(file).name}](../../{file})"),
        ("recipe", f"`objective: {{use: {text.name}}}`"),
    ]
    parts = [
        f"# {text.name}",
        _methods_linked(text.purpose),
        _methods_linked(text.avoid),
        _equation(text.equation),
        *(_linked(_methods_linked(paragraph)) for paragraph in text.explanation),
        "\n".join(["| | |", "|---|---|", *(f"| {about} | {_linked(_cell(fact))} |" for about, fact in facts)]),
    ]
    if text.fields:
        rows = [f"| `{f.name}` | `{f.default}` | {_linked(_cell(f.meaning))} |" for f in text.fields]
        parts.append("\n".join(["## Fields", "", "| field | default | meaning |", "|---|---|---|", *rows]))
    for title, remarks in (("What to watch", text.watch), ("Signs of failure", text.failure)):
        if remarks:
            parts.append(f"## {title}\n\n{_remarks(remarks)}")
    parts.append("What the figures mean, and all other methods: [Methods](../methods.md).")
    return "\n\n".join(part for part in parts if part) + "\n"


def _equation(text: str) -> str:
    return f"```text\n{text.replace('`', '')}\n```" if "=" in text else text


def _remarks(remarks: Sequence[str]) -> str:
    linked = [_methods_linked(remark) for remark in remarks]
    return linked[0] if len(linked) == 1 else "\n".join(f"- {remark}" for remark in linked)


def _methods_linked(text: str) -> str:
    """The names of methods in backquotes become links."""
    known = discover()
    return re.sub(r"`(\w+)`", lambda found: f"[{found[1]}]({found[1]}.md)" if found[1] in known else found[0], text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def command_page() -> str:
    """The help of every command."""
    parts = ["# Command line\n", _help(cli, "truing")]
    parts += [help for name, command in cli.commands.items() for help in _helps(command, f"truing {name}")]
    return "\n".join(parts)


def _helps(command: click.Command, name: str) -> Iterator[str]:
    yield _help(command, name)
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from _helps(inner, f"{name} {below}")


def _help(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100)
    return f"```text\n$ {name} --help\n{command.get_help(context)}\n```\n"


def pages() -> dict[str, str]:
    """Every page by its path in this folder."""
    contents = {
        "recipe.md": recipe_page(),
        "methods.md": methods_index(),
        "commands.md": command_page(),
        **{f"methods/{name}.md": method_page(cls) for name, cls in discover().items()},
    }
    return {name: NOTE + content for name, content in contents.items()}


def outdated(folder: Path) -> list[str]:
    """Names of pages that do not say what the code says, or whose method is no more."""
    old = [
        name
        for name, content in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != content
    ]
    return old + [str(file.relative_to(folder)) for file in _orphans(folder)]


def write(folder: Path) -> None:
    """Write every page, and remove those of methods that are no more."""
    for name, content in pages().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    for file in _orphans(folder):
        file.unlink()


def _orphans(folder: Path) -> list[Path]:
    """Pages that this program wrote and would not write again."""
    known = {folder / name for name in pages()}
    found = sorted(folder.glob("*.md")) + sorted((folder / "methods").glob("*.md"))
    return [file for file in found if file not in known and file.read_text(encoding="utf-8").startswith(NOTE)]


def main() -> None:
    """Write the pages, or with `--check` exit 1 if one does not say what the code says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        write(HERE)
        return
    old = outdated(HERE)
    if old:
        sys.exit(f"docs are older than the code: {', '.join(old)}; run `make docs`")


if __name__ == "__main__":
    main()
