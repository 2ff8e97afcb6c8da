"""The first lines of a report: what was trained on what, how it ended, and what is worth a look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from markupsafe import Markup

from truing.pages import page
from truing.report.details import figure, in_time
from truing.report.panels import LOWER_IS_BETTER, quality_of
from truing.report.runs import Run, mapping
from truing.training.figures import column, number
from truing.training.signs import Complaint

NAMES = {
    "judge/score": "Held-out judge's score",
    "eval_scores": "Held-out score",
    "objective/scores": "Score",
    "eval_rewards/accuracies": "Held-out accuracy",
    "rewards/accuracies": "Accuracy",
    "eval_accuracy": "Held-out accuracy",
    "accuracy": "Accuracy",
    "eval_rewards/margins": "Held-out margin",
    "rewards/margins": "Margin",
    "eval_loss": "Held-out loss",
    "loss": "Loss",
}
"""Names of the figures that a run is judged by."""


def short(path: str) -> str:
    """The last part of a path or hub id; of the result of a run also the run's name.

    >>> short("/models/stories"), short("runs/chain/1-sft/final"), short("org/model")
    ('stories', '1-sft', 'model')
    """
    parts = PurePath(path).parts
    named = [part for part in parts if part != "final"]
    return named[-1] if named else path


def introduction(run: Run) -> str:
    """What was trained on what, in one sentence."""
    how = "full weights" if run.adapter == "none" else run.adapter.replace("lora", "LoRA rank")
    start = mapping(run.stage.get("adapter")).get("start")
    model = short(run.model) + (f" + {short(str(start))}" if start else "")
    data = mapping(run.stage.get("data")).get("path")
    on = f", on {_files(data)}" if data else ""
    return f"{run.method} from {model}, {how}{on}: {run.state_in_words()}."


def _files(data: object) -> str:
    each = data if isinstance(data, list) else [data]
    names = [str(mapping(one).get("path", one)) for one in each]
    return ", ".join(short(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def best_figures(run: Run) -> list[str]:
    """How the figures that matter ended, with their best and its step."""
    known = run.metrics
    said = []
    first = quality_of(known)
    loss = "eval_loss" if "eval_loss" in known else "loss"
    # What a loss of rollouts is says nothing about the model: its advantages are relative.
    second = "objective/scores" if "objective/scores" in known else loss
    for metric in dict.fromkeys((first, second)):
        steps, values = column(run.rows, metric)
        if not len(values):
            continue
        place = int(values.argmin() if metric in LOWER_IS_BETTER else values.argmax())
        began = f", from {figure(values[0])} at step {steps[0]}" if len(values) > 1 else ""
        best = f"; best {figure(values[place])} at step {steps[place]}" if 0 < place < len(values) - 1 else ""
        said.append(f"{NAMES[metric]} ({metric}): {figure(values[-1])} at step {steps[-1]}{began}{best}.")
    kl = run.last("objective/kl")
    if kl is not None:
        said.append(f"KL to the reference: {figure(kl)} nats a completion at the end.")
    skipped = run.last("skipped_steps")
    if skipped:
        said.append(f"{skipped:.0f} steps were skipped, for their gradient was not finite.")
    if run.seconds > 0:
        said.append(f"{in_time(run.seconds)} in {run.steps} steps.")
    return said


def verdict(run: Run, complaints: Sequence[Complaint]) -> list[Markup]:
    """How it ended, its best figures, and every complaint."""
    parts = [page.paragraph(introduction(run)), page.bullets(best_figures(run))]
    if not run.rows:
        parts.append(page.warning("No step was made, so there is nothing to judge."))
    seen = [each.sentence for each in complaints] + list(_seen_by_guards(run, complaints))
    parts += [page.warning(sentence) for sentence in seen]
    if run.rows and not seen:
        parts.append(page.good("No figure left its healthy range."))
    return parts + [page.note(note) for note in (*_done_by_guards(run), *run.notes)]


def _seen_by_guards(run: Run, complaints: Sequence[Complaint]) -> Iterator[str]:
    """What guards said while it trained, or before, that its figures alone do not tell."""
    told = {each.monitor for each in complaints}
    for event in run.events:
        monitor = str(event.get("monitor"))
        if monitor not in told:
            told.add(monitor)
            yield str(event.get("sentence", ""))[: page.LONGEST_TEXT]


def _done_by_guards(run: Run) -> Iterator[str]:
    """What they did beside speaking."""
    restored = number(run.rows[-1].get("restored_step")) if run.rows else None
    for event in run.events:
        at = f"After step {figure(number(event.get('step')))} guards.{event.get('monitor')}"
        if event.get("action") == "lower":
            yield f"{at} halved the learning rate."
        elif event.get("action") == "restore" and restored is not None:
            yield f"{at} ended training: the result is the best state, that of step {figure(restored)}."
        elif event.get("action") in ("stop", "restore"):
            yield f"{at} stopped the run."
