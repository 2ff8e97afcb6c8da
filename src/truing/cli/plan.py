"""`truing plan`: memory and time before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

PATH = click.Path(path_type=Path)

OF_A_MODEL = (
    "method",
    "adapter",
    "rank",
    "dtype",
    "checkpointing",
    "examples",
    "micro_tokens",
    "new_tokens",
    "table",
)
"""Options that say what a recipe says itself."""

OF_A_RECIPE = ("overrides",)


@click.command()
@click.argument("recipe", required=False, type=PATH)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe.")
@click.option("--model", type=PATH, metavar="PATH", help="Without a recipe: a model folder or config.json.")
@click.option(
    "--method", default="sft", show_default=True, help="Without a recipe: what is trained, as `use:` names it."
)
@click.option("--adapter", type=click.Choice(["lora", "none", "qlora"]), default="lora", show_default=True)
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="Of weights and activations; as the checkpoint's.")
@click.option("--checkpointing", is_flag=True, help="Compute activations again in the backward pass.")
@click.option("--length", type=click.IntRange(min=2), help="Tokens of a row (1,024; a recipe's own data otherwise).")
@click.option("--examples", type=click.IntRange(min=1), default=8, show_default=True, help="Rows of a step.")
@click.option("--micro-tokens", type=click.IntRange(min=1), help="Tokens at once; the trainer's default otherwise.")
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of a rollout's completion."
)
@click.option("--gpu", metavar="NAME|SIZE", help="A card such as rtx4090 or a100-40gb, or memory such as 24GB (GiB).")
@click.option("--device", type=click.Choice(["cpu"]), help="Plan for this machine's processor and RAM.")
@click.option("--table", is_flag=True, help="Methods by all weights, LoRA and QLoRA, for --model on a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    recipe: Path | None,
    overrides: tuple[str, ...],
    model: Path | None,
    method: str,
    adapter: Literal["lora", "none", "qlora"],
    rank: int,
    dtype: Literal["bf16", "fp32"] | None,
    checkpointing: bool,
    length: int | None,
    examples: int,
    micro_tokens: int | None,
    new_tokens: int,
    gpu: str | None,
    device: Literal["cpu"] | None,
    table: bool,
    as_json: bool,
) -> None:
    """Say what RECIPE, or a method on --model, needs in memory and time, before anything is loaded.

    Needs the model's config.json alone. Without --gpu it plans for this machine's RAM.
    """
    from truing.models.lora.settings import AdapterSettings
    from truing.planner import request, text
    from truing.planner.machine import named_card, this_cpu
    from truing.recipe.load import load_recipe

    if (recipe is None) == (model is None):
        raise click.UsageError("give a RECIPE, or --model with a model folder or config.json")
    _refuse_without_effect(OF_A_MODEL if recipe is not None else OF_A_RECIPE)
    if gpu is not None and device is not None:
        raise click.UsageError("--gpu and --device cpu are two machines; give one")
    machine = named_card(gpu) if gpu is not None else this_cpu()
    if recipe is not None:
        found = list(request.recipe_answers(load_recipe(recipe, overrides), machine, machine.device, length))
    else:
        assert model is not None
        question = request.Question(
            model,
            method,
            None if adapter == "none" else AdapterSettings(rank=rank, base="nf4" if adapter == "qlora" else None),
            dtype,
            checkpointing,
            length or 1024,
            examples,
            micro_tokens,
            new_tokens,
        )
        if table:
            cells = list(request.table(question, machine if gpu is not None else None))
            rows = [{"method": name, "way": way, **plan.as_json()} for name, way, plan in cells]
            click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(text.table_lines(cells)))
            return
        found = [request.answer(question, machine, machine.device)]
    if as_json:
        click.echo(json.dumps([one.plan.as_json() for one in found], indent=2))
        return
    click.echo("\n\n".join("\n".join(text.lines(one)) for one in found))


def _refuse_without_effect(names: tuple[str, ...]) -> None:
    """An option that changes nothing is a mistake that nobody would see."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
            remedy = "a recipe says it itself: use --set KEY=VALUE" if name != "overrides" else "it needs a RECIPE"
            raise click.UsageError(f"{option} has no effect here; {remedy}")
