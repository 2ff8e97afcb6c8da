"""`truing advise`: which method, for these data, this model and this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)
CHOSEN = ("alike", "better", "worse")
GOALS = ("narrow", "open", "reasoning", "serving")


@click.command()
@click.option("--data", multiple=True, required=True, metavar="FILE", help="What there is to learn from; repeatable.")
@click.option("--model", required=True, type=FOLDER, metavar="MODEL", help="The model folder to begin with.")
@click.option("--gpu", metavar="NAME|SIZE", help="A card such as rtx4090, or memory such as 24GB; else this machine.")
@click.option("--template", metavar="NAME", help="Chat template; the tokenizer's own, or plain where it has none.")
@click.option("--goal", type=click.Choice(GOALS), help="A narrow change, open-ended quality, reasoning, or serving.")
@click.option("--verifier", metavar="FILE.py:FN", help="A program that says whether an answer is right.")
@click.option("--judge", metavar="RUN|FILE.py:FN", help="What can judge new answers: a reward model or a function.")
@click.option("--prompted/--not-prompted", default=None, help="Whether a good prompt does it already.")
@click.option("--tuned/--base", default=None, help="Whether the model is tuned already (a chat template says so).")
@click.option("--foreign/--own", default=None, help="Whether other models wrote the compared answers.")
@click.option("--chosen", type=click.Choice(CHOSEN), help="The chosen answers beside what the model writes today.")
@click.option("--one-stage/--stages", default=None, help="Whether SFT before it is ruled out.")
@click.option("--split-prompts/--same-prompts", default=None, help="Whether good and bad answers have other prompts.")
@click.option("--tasks/--one-task", default=None, help="Whether one model serves several tasks.")
@click.option("--ask/--no-ask", default=None, help="Ask what is not known (by default in a terminal).")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Look at the first so many rows only.")
@click.option("--recipe", type=FOLDER, default=Path("advice.yaml"), show_default=True, help="Where the recipe goes.")
@click.option(
    "--probe",
    metavar="BUDGET",
    help="Try the advice and the second choice for tokens=200k, time=60s or steps=100 each; what is measured beyond "
    "chance overrules the rules.",
)
@click.option("--trials", type=FOLDER, default=Path("runs/advise"), show_default=True, help="Where trials are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and ask nothing.")
def advise(
    data: tuple[str, ...],
    model: Path,
    gpu: str | None,
    template: str | None,
    goal: str | None,
    verifier: str | None,
    judge: str | None,
    prompted: bool | None,
    tuned: bool | None,
    foreign: bool | None,
    chosen: str | None,
    one_stage: bool | None,
    split_prompts: bool | None,
    tasks: bool | None,
    ask: bool | None,
    limit: int | None,
    recipe: Path,
    probe: str | None,
    trials: Path,
    as_json: bool,
) -> None:
    """Say which method fits these data, this model and this machine, why, and what would change the answer.

    Writes a recipe that is ready to run. Nothing is trained unless --probe is given.
    """
    from rich.console import Console

    from truing.advisor.advise import Ways, give_advice
    from truing.advisor.look import Asked
    from truing.audit.terminal import follow
    from truing.compare.request import Budget
    from truing.planner.machine import named_card, this_cpu
    from truing.training.progress import reporter

    known = {
        "goal": goal,
        "verifier": True if verifier else None,
        "judge": True if judge or verifier else None,
        "prompted": prompted,
        "tuned": tuned,
        "foreign": foreign,
        "chosen": chosen,
        "one_stage": one_stage,
        "split_prompts": split_prompts,
        "tasks": tasks,
    }
    machine = named_card(gpu) if gpu is not None else this_cpu()
    rewards = tuple(one for one in (verifier, judge) if one)
    asked = Asked(str(model), data, machine, known, template, rewards, limit)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    interactive = not as_json and (terminal if ask is None else ask)
    ways = Ways(recipe, interactive, as_json, None if probe is None else Budget.parse(probe), trials)
    give_advice(asked, ways, Console(width=None if sys.stdout.isatty() else 120), follow(reporter()))
