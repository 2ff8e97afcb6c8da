"""The command line. Each command imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from truing.cli.advise import advise
from truing.cli.compare import compare
from truing.cli.data import data
from truing.cli.plan import plan
from truing.cli.ranks import given, in_processes, nproc
from truing.cli.verify import verify
from truing.core.errors import GuardError, MachineError, Stopped, Terminated, TruingError
from truing.core.text import harmless

if TYPE_CHECKING:
    from truing.training.progress import Reporter
    from truing.training.ranks import Ranks

FOLDER = click.Path(path_type=Path)


class _Commands(click.Group):
    """Commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="truing", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune and align language models: SFT, DPO, KTO, reward models, RLHF, with full weights or LoRA."""


@cli.command()
@click.option("--output", type=FOLDER, default=Path("runs/tour"), show_default=True, help="Where the tour writes.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Repeat with several seeds.")
@click.option("--quick", is_flag=True, help="Half the training, fewer prompts: a look round.")
def tour(output: Path, seeds: int, quick: bool) -> None:
    """Measure every method on a small world of our own: nothing to download, no GPU, under two minutes."""
    from truing.tour.tour import run_tour

    run_tour(output, seeds=seeds, quick=quick)


@cli.command()
@click.argument("file", type=FOLDER)
@click.option("--output", type=FOLDER, help="Where runs are kept (runs/studies/NAME by default).")
@click.option("--results", type=FOLDER, help="Where table and figures go (`results` beside FILE by default).")
def study(file: Path, output: Path | None, results: Path | None) -> None:
    """Run the study that FILE describes on the tour's world, and write its table and figures.

    What was finished before on the same settings is kept, so that a study can be stopped, changed and run again.
    """
    from truing.lab.study import run_study

    run_study(file, output or Path("runs/studies") / file.stem, results or file.parent / "results")


@cli.command()
@click.argument("recipe", type=FOLDER)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."
)
@click.option("--output", type=FOLDER, help="The run directory (the recipe's `output` otherwise).")
@click.option("--dry-run", is_flag=True, help="Check recipe, data and model, show the first batch, and stop.")
@nproc
def train(recipe: Path, overrides: tuple[str, ...], output: Path | None, dry_run: bool, nproc: int) -> None:
    """Run every stage of RECIPE, a YAML file."""
    from truing.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides)
    target = output or (Path(resolved.output) if resolved.output else None)
    if target is None and not dry_run:
        raise click.UsageError("give --output DIR, or `output:` in the recipe")
    if nproc > 1 and not dry_run:
        in_processes(nproc, ["train", str(recipe), *given("--set", overrides), *given("--output", [target])])
        return
    from truing.build.chain import preview, run
    from truing.build.chain import resume as continue_run
    from truing.training.process_group import joined, restarted
    from truing.training.progress import reporter, reporter_of

    if dry_run or target is None:
        preview(resolved, reporter())
        return
    with joined() as ranks:
        told = reporter_of(ranks)
        if restarted(ranks) and ranks.from_first((target / "recipe.yaml").is_file()):
            _reported(target, told, ranks, lambda: continue_run(target, told, ranks))
            return
        _reported(target, told, ranks, lambda: run(resolved, target, told, None, ranks))


@cli.command()
@click.argument("run", type=FOLDER)
@nproc
def resume(run: Path, nproc: int) -> None:
    """Continue RUN from its last checkpoint, exactly as if it had not stopped; on any number of processes."""
    if nproc > 1:
        in_processes(nproc, ["resume", str(run)])
        return
    from truing.build.chain import resume as continue_run
    from truing.training.process_group import joined
    from truing.training.progress import reporter_of

    with joined() as ranks:
        told = reporter_of(ranks)
        _reported(run, told, ranks, lambda: continue_run(run, told, ranks))


def _reported(run: Path, reporter: Reporter, ranks: Ranks, work: Callable[[], object]) -> None:
    """Do the work and write the report of its run, also where a guard stopped it; say how to go on where that helps."""
    try:
        work()
    except GuardError:
        _write_report(run, reporter, ranks)
        raise
    except (KeyboardInterrupt, SystemExit) as now:
        kind = Stopped if isinstance(now, KeyboardInterrupt) else Terminated
        raise kind(f"stopped at once{_how_to_go_on(run)}") from None
    except (MachineError, Stopped) as ended:
        raise type(ended)(f"{ended}{_how_to_go_on(run)}") from ended
    _write_report(run, reporter, ranks)


def _how_to_go_on(run: Path) -> str:
    return f"\ncontinue with: truing resume {run}" if (run / "recipe.yaml").is_file() else ""


def _write_report(run: Path, reporter: Reporter, ranks: Ranks) -> None:
    """Whatever is wrong with the page of a run must not look as if the run had failed."""
    if not ranks.first:
        return
    from truing.report.write import write_report

    try:
        reporter.say(f"report: {write_report([run])}")
    except Exception as failure:  # noqa: BLE001
        reporter.warn(f"no report was written: {harmless(str(failure))}; try `truing report {run}`")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--output",
    type=FOLDER,
    metavar="FILE",
    help="The page (by default RUN/report.html; of several runs, report.html in the folder that holds them all).",
)
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Write a page about RUN, a chain, or several RUNS over each other: verdict, curves, samples, recipe."""
    from truing.report.write import write_report

    click.echo(write_report(runs, output))


@cli.command("runs")
@click.argument("folders", nargs=-1, type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
def list_all(folders: tuple[Path, ...], as_json: bool) -> None:
    """List all runs below FOLDERS (runs by default), the one changed last at the end."""
    import json

    from rich.console import Console

    from truing.report.listing import list_runs, table

    found = list_runs(folders or (Path("runs"),))
    if as_json:
        click.echo(json.dumps([run.as_json() for run in found], indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(found, console.width) if found else "no runs here")


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--prompt", help="Answer this one prompt and leave.")
@click.option("--compare-to", type=FOLDER, metavar="RUN|MODEL", help="Show another run's or model's answer beside it.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest token."
)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the k likeliest tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="... from those that together have this.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
def chat(
    run: Path,
    prompt: str | None,
    compare_to: Path | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
) -> None:
    """Talk to the result of RUN (a run directory, an adapter folder, or a model folder)."""
    from truing.build.chat import Settings, answer_once, converse
    from truing.models.decoding import Choice

    settings = Settings(max_new_tokens, Choice(temperature, top_k, top_p), seed)
    if prompt is not None:
        answer_once(run, compare_to, prompt, settings)
    else:
        converse(run, compare_to, settings)


@cli.command()
@click.argument("run", type=FOLDER)
@click.option("--output", type=FOLDER, help="Where the merged model goes (RUN/merged by default).")
def merge(run: Path, output: Path | None) -> None:
    """Merge the adapter of RUN into its base model, and measure what that changes."""
    from truing.build.merge import merge_run

    click.echo(merge_run(run, output or run / "merged"))


@cli.command()
@click.argument("run", type=FOLDER)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write every score here, one JSON object a line.")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Tokens of a row; by default what RUN was trained with, in an ensemble the shortest of them.",
)
@click.option(
    "--with",
    "others",
    multiple=True,
    type=FOLDER,
    metavar="RUN",
    help="Another reward model of an ensemble, such as RUN with another seed; repeatable.",
)
@click.option(
    "--deviations",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="An ensemble's score is the mean less so many standard deviations of its members.",
)
def score(
    run: Path,
    files: tuple[Path, ...],
    output: Path | None,
    max_length: int | None,
    others: tuple[Path, ...],
    deviations: float,
) -> None:
    """Score the answers in FILES with the reward model of RUN; for comparisons, say how often it agrees."""
    from truing.build.score import score_file
    from truing.training.progress import reporter

    runs = (run, *others)
    for line in score_file(runs, [str(file) for file in files], max_length, output, reporter(), deviations=deviations):
        click.echo(line)


@cli.command("best-of-n")
@click.argument("run", type=FOLDER)
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    required=True,
    metavar="RUN|FILE.py:FN",
    help="A reward model, or a Python function as in rollout.rewards; of several the sum.",
)
@click.option("--n", "count", type=int, default=16, show_default=True, help="Completions of each prompt.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the k likeliest tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="... from those that together have this.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sampling.")
@click.option("--limit", type=click.IntRange(min=1), metavar="ROWS", help="Only the first so many rows.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Write the best of each prompt here, to train sft on.")
@click.option("--all-samples", type=FOLDER, metavar="FILE", help="Write every completion and its score here.")
@click.option(
    "--reward-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a function may take for a batch of completions.",
)
@click.option("--server", metavar="URL", help="Sample from a server of RUN's model; RUN gives tokenizer and template.")
@click.option("--server-kind", type=click.Choice(["vllm", "llama_cpp", "transformers"]), help="Which server it is.")
@click.option("--server-model", metavar="NAME", help="The name that it serves the model under (RUN by default).")
@click.option("--server-key", metavar="VARIABLE", help="The environment variable that holds its API key.")
def best_of_n(
    run: Path,
    files: tuple[str, ...],
    rewards: tuple[str, ...],
    count: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int,
    limit: int | None,
    output: Path | None,
    all_samples: Path | None,
    reward_timeout: float,
    server: str | None,
    server_kind: str | None,
    server_model: str | None,
    server_key: str | None,
) -> None:
    """Sample completions of the prompts in FILES with the model of RUN, score them, and keep the best of each."""
    from truing.build.best_of_n import Targets
    from truing.build.best_of_n import best_of_n as keep_best
    from truing.build.writers import Draw
    from truing.core.errors import InputError
    from truing.core.settings import parse
    from truing.models.decoding import Choice
    from truing.rl.server_settings import ServerSettings
    from truing.training.progress import reporter

    settings = None
    if server is not None:
        if server_kind is None:
            raise click.UsageError("--server needs --server-kind: vllm, llama_cpp or transformers")
        asked = {"url": server, "kind": server_kind.replace("_", "."), "model": server_model or str(run)}
        settings = parse(
            ServerSettings, {**asked, "api_key_from": server_key}, where=lambda path: "--server: ", error=InputError
        )
    elif server_kind or server_model or server_key:
        raise click.UsageError("--server-kind, --server-model and --server-key belong to --server URL; give that too")
    for line in keep_best(
        run,
        files,
        rewards,
        Draw(count, max_new_tokens, Choice(temperature, top_k, top_p), seed),
        Targets(output, all_samples),
        reporter(),
        limit=limit,
        reward_timeout=reward_timeout,
        server=settings,
    ):
        click.echo(line)


cli.add_command(compare)


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the objectives with their parameters and sources, or tell about one."""
    from truing.build.methods import describe, overview

    click.echo(describe(name) if name else overview())


cli.add_command(data)
cli.add_command(plan)
cli.add_command(advise)
cli.add_command(verify)


def main() -> None:
    """Run the command line; our own errors become one message and their exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads that spin long while they wait make a busy machine five times slower, and an idle one no faster.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(Terminated.exit_code))
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(Stopped.exit_code)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except Stopped as stopped:
        click.echo(harmless(str(stopped)), err=True)
        sys.exit(stopped.exit_code)
    except TruingError as wrong:
        click.echo(f"error: {harmless(str(wrong))}", err=True)
        sys.exit(wrong.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
