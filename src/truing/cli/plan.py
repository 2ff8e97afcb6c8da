"""`truing plan`: memory and time before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from truing.planner.cluster import Cluster
    from truing.planner.machine import Machine
    from truing.planner.request import Answer
    from truing.recipe.schema import Recipe

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

OF_A_CLUSTER = ("link", "network", "efficiency")
"""Options that speak of several GPUs."""


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
@click.option(
    "--measure", is_flag=True, help="Time this machine (its GPU, or processor) for a few seconds instead of guessing."
)
@click.option("--nodes", type=click.IntRange(min=1), help="Plan for so many nodes of --gpus GPUs each.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of a node.")
@click.option("--link", metavar="GB/s", help="What a GPU reaches each way to others of its node; the card's otherwise.")
@click.option("--network", metavar="NAME|GB/s", help="What a node reaches each way to others: ethernet-25g, 50GB/s.")
@click.option(
    "--efficiency",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of the best speed of a GPU below which more of them do not pay.",
)
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
    measure: bool,
    nodes: int | None,
    gpus: int | None,
    link: str | None,
    network: str | None,
    efficiency: float,
    table: bool,
    as_json: bool,
) -> None:
    """Say what RECIPE, or a method on --model, needs in memory and time, before anything is loaded.

    Needs the model's config.json alone. Without --gpu it plans for this machine's RAM. With --nodes or --gpus it lays
    the model over several cards, compares the layouts, and says how many pay.
    """
    from truing.models.lora.settings import AdapterSettings
    from truing.planner import request, text
    from truing.planner.machine import named_card, this_cpu
    from truing.recipe.load import load_recipe

    if (recipe is None) == (model is None):
        raise click.UsageError("give a RECIPE, or --model with a model folder or config.json")
    _refuse_without_effect(OF_A_MODEL if recipe is not None else OF_A_RECIPE)
    several = nodes is not None or gpus is not None
    if several and (gpu is None or table):
        raise click.UsageError("--nodes and --gpus are of cards: give --gpu NAME, and no --table")
    if not several:
        _refuse_without_effect(OF_A_CLUSTER)
    if gpu is not None and (device is not None or measure):
        raise click.UsageError("--gpu is another machine than --device cpu and --measure are about; give one")
    machine = named_card(gpu) if gpu is not None else this_cpu()
    whole = None if recipe is None else load_recipe(recipe, overrides)
    if measure:
        machine = _measured(whole, model, dtype, device)
    if whole is not None:
        found = list(request.recipe_answers(whole, machine, machine.device, length))
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
    if several:
        from truing.planner.cluster import cluster_of

        cluster = cluster_of(machine, nodes or 1, gpus or 1, link, network)
        _echo_scaled(found, cluster, efficiency, filling=recipe is None and not _given("examples"), as_json=as_json)
    elif as_json:
        click.echo(json.dumps([one.plan.as_json() for one in found], indent=2))
    else:
        click.echo("\n\n".join("\n".join(text.lines(one)) for one in found))


def _echo_scaled(found: Sequence[Answer], cluster: Cluster, efficiency: float, *, filling: bool, as_json: bool) -> None:
    """Lay each plan over the cluster; `filling` where nobody said how many rows a step has."""
    from truing.planner.scaling import scale
    from truing.planner.scaling_text import lines

    scaled = [scale(one, cluster, efficiency, None if filling else one.examples) for one in found]
    if as_json:
        click.echo(json.dumps([one.as_json() for one in scaled], indent=2))
    else:
        click.echo("\n\n".join("\n".join(lines(one)) for one in scaled))


def _measured(
    whole: Recipe | None, model: Path | None, dtype: Literal["bf16", "fp32"] | None, device: Literal["cpu"] | None
) -> Machine:
    """Time the machine at hand with matrices as the model has them, or a recipe's first stage."""
    from truing.build.measuring import measured_machine
    from truing.planner.architecture import read_architecture

    folder, asked = model, dtype
    if whole is not None:
        first = whole.stages[0]
        folder = Path(first.model or "")
        asked = None if first.precision.dtype == "auto" else first.precision.dtype
    assert folder is not None
    return measured_machine(read_architecture(folder), asked, device)


def _given(option: str) -> bool:
    """Whether an option was written on the command line."""
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def _refuse_without_effect(names: tuple[str, ...]) -> None:
    """An option that changes nothing is a mistake that nobody would see."""
    for name in names:
        if _given(name):
            option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
            remedy = "a recipe says it itself: use --set KEY=VALUE" if name in OF_A_MODEL else "it needs a RECIPE"
            remedy = "it needs --nodes or --gpus" if name in OF_A_CLUSTER else remedy
            raise click.UsageError(f"{option} has no effect here; {remedy}")
