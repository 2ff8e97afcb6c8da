"""What is wrong before the first step: rows that repeat each other, and a template that the start does not know."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from truing.build.policy import BuiltPolicy
from truing.core.errors import TemplateError
from truing.core.text import harmless
from truing.data.dataset import Dataset
from truing.data.examples import Message
from truing.data.report import DataReport
from truing.data.templates import Template, load_template
from truing.models.loading import load_tokenizer
from truing.recipe.schema import Stage
from truing.training.signs import Complaint

PROBE = (Message("user", "What?"), Message("assistant", "This."))


def complaints_before(stage: Stage, built: BuiltPolicy, dataset: Dataset) -> tuple[Complaint, ...]:
    """Everything that is worth a sentence before training, at step 0."""
    found = [*repeats(dataset.report, stage.guards.limits.duplicates)] if not dataset.prompts else []
    return (*found, *strange_template(dataset.template, _own_tokenizer(built)))


def repeats(report: DataReport, limit: float) -> Iterator[Complaint]:
    """Too large a share of rows that are the same as an earlier one, held-out ones included."""
    if report.trees and report.duplicates >= limit * report.trees:
        yield Complaint(
            "duplicates",
            "duplicates",
            0,
            f"{report.duplicates:,} of {report.trees:,} rows ({report.duplicates / report.trees:.0%}) repeat an "
            "earlier one exactly: they count several times, are learned by heart first, and make held-out figures of "
            "other files look worse. Take repeats out of the data.",
        )


def strange_template(template: Template, own: PreTrainedTokenizerBase) -> Iterator[Complaint]:
    """A template of the recipe that renders a conversation otherwise than the one which the start carries."""
    carried = load_template(None, own)
    if carried.source is None or template.source is None:
        return
    try:
        same = carried.render(PROBE) == template.render(PROBE)
    except TemplateError:
        return  # one of them wants other turns, so there is nothing to compare
    if not same:
        yield Complaint(
            "template",
            "template",
            0,
            f"The start carries a chat template of its own, and {harmless(template.name)!r} renders conversations "
            "otherwise: what the model learned in one it does not know in the other. Leave `template:` out to take the "
            "start's own, unless it was never tuned with it.",
        )


def _own_tokenizer(built: BuiltPolicy) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside what the stage starts from, with the template of who trained it."""
    adapter = built.start.adapter
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter)
    return built.loaded.tokenizer
