"""The tour's report: one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from truing.lab.arms import BASE, Experiment, Outcome
from truing.lab.figures import answers_of, frontier_figure, hacking_figure, rewards_figure
from truing.lab.summary import Row, Summary
from truing.pages.page import Section, bullets, figure, heading, page, paragraph, preformatted, table
from truing.pages.plotting import to_svg
from truing.tour.advice import conclusions, recommendation
from truing.tour.arms import PPO, PPO_FREE

BEST_OF = 16


def tour_page(experiment: Experiment, summary: Summary, outcomes: Sequence[Outcome], machine: str, command: str) -> str:
    """The whole page."""
    return page(
        "Every method of alignment, measured on one small world",
        "A text world of short reviews whose true reward is a program, so that what training did can be computed "
        f"exactly. {machine}",
        [
            Section("What followed", "conclusions", _conclusions(summary)),
            Section("Measured", "measured", _measured(experiment, summary)),
            Section("The frontier", "frontier", _frontier(summary, outcomes)),
            Section("A reward model, exploited", "hacking", _hacking(outcomes)),
            Section("The same prompts, answered by every model", "answers", _answers(outcomes)),
            Section("How it was made", "how", _how(experiment, summary, command)),
        ],
    )


def _conclusions(summary: Summary) -> tuple[Markup, ...]:
    return (
        bullets(conclusions(summary)),
        heading("What to try first on your own data"),
        paragraph(recommendation(summary)),
    )


def _measured(experiment: Experiment, summary: Summary) -> tuple[Markup, ...]:
    headers = (
        "method",
        "learns from",
        "rows",
        "seconds",
        "peak MB",
        "trained",
        "true reward",
        "KL",
        "regret",
        "while training",
    )
    rows = [cells(row, experiment) for row in summary.rows]
    svg = to_svg(
        rewards_figure(summary.rows, summary.basis),
        "True reward of every arm",
        "; ".join(f"{row.arm} {row.reward}" for row in summary.rows),
    )
    return (
        table(headers, rows, numeric={2, 3, 4, 5, 6, 7, 8}),
        paragraph(
            "True reward is the expectation over every possible answer, not a sample; intervals are 95 %, "
            f"{summary.basis}. KL is from sft, in nats a prompt. Regret is the reward that the exact optimum of the "
            "same KL divergence has more. Rows are those read, with repetition; for ppo the prompts that it answered, "
            "and its reward model read comparisons before. Memory is the peak of the run's own process, about 300 MB "
            "of it libraries. Best of 16 takes what the reward model likes best of 16 samples of sft; it is computed, "
            "not sampled, and what it costs is that reward model's training, then 16 samples for every answer."
        ),
        figure(svg),
    )


def cells(row: Row, experiment: Experiment) -> tuple[str, ...]:
    """A row of the table."""
    learns = next((arm.data for arm in experiment.arms if arm.name == row.arm), None)
    source = {BASE: "running text", "training_prompts": "its own answers", None: "comparisons"}
    known = source.get(row.arm) or source.get(learns) or str(learns)
    return (
        row.arm,
        {"pairs": "comparisons", "judgements": "thumbs"}.get(known, known),
        f"{row.rows:,}",
        f"{row.seconds:.1f}",
        f"{row.bytes / 1e6:.0f}",
        f"{row.parameters:,}",
        str(row.reward),
        f"{row.kl:.2f}",
        f"{row.regret:.2f}",
        row.stability,
    )


def _frontier(summary: Summary, outcomes: Sequence[Outcome]) -> tuple[Markup, ...]:
    made = frontier_figure(summary, outcomes, "best of n")
    said = "; ".join(f"{row.arm}: reward {row.reward.mean:.2f} at KL {row.kl:.2f}" for row in summary.rows)
    return (
        paragraph(
            "No policy can lie above the black line: for every distance from the start it is the highest expected "
            "reward that exists, π*(y|x) ∝ π_sft(y|x) · exp(r(x, y)/β) for every β. A line that leads away to the "
            "right and not up spends its KL divergence on something other than reward."
        ),
        figure(
            to_svg(made, "Reward against KL", said),
            "Paths from sft to where each method ended; best of n: n = 1 to 256.",
        ),
    )


def _hacking(outcomes: Sequence[Outcome]) -> tuple[Markup, ...]:
    scorer = next(outcome for outcome in outcomes if outcome.best_of)
    made = hacking_figure(outcomes, (PPO, PPO_FREE), "best of n")
    accuracy, correlation = scorer.figures.get("eval_accuracy", 0.0), scorer.figures["correlation"]
    best = max(scorer.best_of, key=lambda one: fmean(one.reward))
    return (
        paragraph(
            f"The reward model agrees with {accuracy:.0%} of held-out comparisons, and its score has a correlation of "
            f"{correlation:.2f} with the truth over sft's answers. Optimised against, it is followed where it is "
            f"wrong: the best of {best.count} is worth the most here, {fmean(best.reward):.2f} in truth."
        ),
        figure(
            to_svg(made, "Proxy and truth against √KL", "Left the reward model's score, right the true reward."),
            "The same policies twice: what they are paid for, and what they are worth.",
        ),
    )


def _answers(outcomes: Sequence[Outcome]) -> tuple[Markup, ...]:
    parts = []
    for prompt, told in answers_of(outcomes).items():
        parts.append(heading(prompt))
        rows = [(arm, answer, f"{reward:.2f}") for arm, answer, reward in told]
        parts.append(table(("method", "likeliest answer", "true reward"), rows, numeric={2}, texts={1}))
    return tuple(parts)


def _how(experiment: Experiment, summary: Summary, command: str) -> tuple[Markup, ...]:
    world = ", ".join(f"{knob} {value}" for knob, value in experiment.world.model_dump().items() if value is not None)
    return (
        paragraph(
            f"{experiment.prompts} held-out prompts, 103,680 answers each; every arm is a recipe beside this page and "
            "ran as truing train runs it, in a process of its own. The prompts were not trained on; the settings were "
            "chosen by trying, on this world, so the figures show what methods do and not which one is best elsewhere."
        ),
        paragraph(f"The world: {world}."),
        preformatted(command),
    )
