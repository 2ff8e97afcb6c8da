"""`truing compare`: methods or recipes against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("recipes", nargs=-1, type=FOLDER, metavar="[RECIPE]...")
@click.option("--model", metavar="MODEL", help="A model folder or hub id that all methods start from.")
@click.option("--start", metavar="RUN", help="Start from the result of a run instead, such as an SFT run.")
@click.option("--methods", "names", metavar="NAMES", help="Methods to compare, such as sft,dpo,kto.")
@click.option(
    "--data", multiple=True, metavar="FILE", help="What to learn from; repeatable: each method takes what it can use."
)
@click.option("--template", metavar="NAME", help="Chat template; the tokenizer's own, or plain where it has none.")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "none"]), default="lora", show_default=True)
@click.option("--lr", metavar="RATES", help="Learning rates, such as dpo=1e-5,kto=5e-6; else each method's own.")
@click.option(
    "--budget",
    metavar="BUDGET",
    help="Of each method: tokens=200k, time=60s or steps=100. By default the tokens of one pass over the data of the "
    "method that has the least; recipes train as they say.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each method.")
@click.option(
    "--reward",
    metavar="RUN|FILE.py:FN",
    help="Judges completions against the start's, and trains methods that need a reward.",
)
@click.option("--reward-timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True)
@click.option("--general", metavar="FILE", help="Text that nothing is trained on, to measure forgetting.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Only the first so many rows of each file.")
@click.option(
    "--held-out",
    type=click.FloatRange(min=0, max=0.9, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of the prompts that nothing is trained on.",
)
@click.option(
    "--evaluate-on",
    type=click.IntRange(min=2),
    default=200,
    show_default=True,
    metavar="PROMPTS",
    help="Held-out prompts that results are measured on, at most.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Completions of each held-out prompt."
)
@click.option(
    "--max-length", type=click.IntRange(min=2), help="Tokens of a row; 1,024 or the model's positions by default."
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--output", type=FOLDER, default=Path("runs/compare"), show_default=True)
def compare(
    recipes: tuple[Path, ...],
    model: str | None,
    start: str | None,
    names: str | None,
    data: tuple[str, ...],
    template: str | None,
    adapter: Literal["lora", "qlora", "none"],
    lr: str | None,
    budget: str | None,
    seeds: int,
    reward: str | None,
    reward_timeout: float,
    general: str | None,
    limit: int | None,
    held_out: float,
    evaluate_on: int,
    samples: int,
    max_length: int | None,
    max_new_tokens: int,
    output: Path,
) -> None:
    """Train methods, or RECIPES, on the same data with the same budget, and say which differences are real.

    All are measured on the same held-out prompts. Called again with the same arguments, it goes on where it stopped.
    """
    from truing.compare.request import Budget, Request, parse_methods, parse_rates

    request = Request(
        recipes=tuple(str(recipe) for recipe in recipes),
        model=model,
        start=start,
        methods=parse_methods(names),
        data=data,
        output=output,
        template=template,
        adapter=adapter,
        rates=parse_rates(lr),
        budget=None if budget is None else Budget.parse(budget),
        seeds=seeds,
        reward=reward,
        reward_timeout=reward_timeout,
        general=general,
        limit=limit,
        held_out=held_out,
        evaluate_on=evaluate_on,
        samples=samples,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
    )
    request.check()
    from truing.compare.compare import compare as run_comparison

    run_comparison(request)
