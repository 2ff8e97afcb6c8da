"""The result of a stage: a folder that `transformers` or `peft` load as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from truing.build import parity
from truing.build.policy import POLICY, BuiltPolicy, Start
from truing.core.errors import ParityFailed
from truing.core.trees import Tree
from truing.data.templates import Template
from truing.models.lora.peft_format import adapter_tensors, save_adapter
from truing.models.nf4 import write_storage
from truing.training.disk import on_disk
from truing.training.manifest import write_manifest
from truing.training.progress import Reporter
from truing.training.run_directory import fresh_staging, publish, replace_file, staging_of


def write_final(
    built: BuiltPolicy, template: Template, prompts: Sequence[Tree], run: Path, card: str, reporter: Reporter
) -> Start:
    """Write `final/`: the adapter or the model, tokenizer, chat template and model card. Return it as a start.

    Before it gets its name it is read back and answers some prompts. Where it answers otherwise than the policy in
    memory, which is of no use afterwards, it is there nevertheless, and ParityFailed is raised.
    """
    target, company = run / "final", built.company
    first = company.ranks.first
    staging = fresh_staging(target) if first else staging_of(target)
    with on_disk(target):
        result = write_weights(built, run, staging)
        if first:
            save_tokenizer(built.loaded.tokenizer, template, staging)
            (staging / "README.md").write_text(card, encoding="utf-8")
            write_manifest(staging)
    found = _read_back(built, template, prompts, staging, reporter)
    if first:
        _publish(staging, target, found, reporter)
    company.ranks.barrier()
    return result


def _read_back(
    built: BuiltPolicy, template: Template, prompts: Sequence[Tree], staging: Path, reporter: Reporter
) -> parity.Parity | None:
    """Let the first rank compare what was written with what was trained; None where there is no room for it."""
    company = built.company
    try:
        if company.holds_whole():
            with company.whole():
                return parity.measure(built, template, prompts, staging) if company.ranks.first else None
    except torch.OutOfMemoryError:  # the result is whole, and worth more than a figure about it
        pass
    reporter.warn("no memory left to read the result back beside what was trained")
    return None


def _publish(staging: Path, target: Path, found: parity.Parity | None, reporter: Reporter) -> None:
    """Give the result its name, and say how it answers."""
    if found is not None:
        replace_file(target.parent / parity.FILE, json.dumps(found.as_json(), allow_nan=False) + "\n")
        reporter.say(f"  {found.sentence}")
    publish(staging, target)
    if found is not None and found.complaint is not None:
        raise ParityFailed(
            f"{target} is written, but {found.complaint}. The last checkpoint holds what was trained: delete {target} "
            "and resume to write it again, or resume to go on with it as it is"
        )
    reporter.say(f"  result: {target}")


def write_weights(built: BuiltPolicy, run: Path, folder: Path) -> Start:
    """Write the trained weights into a folder: the adapter, with its base in the run where it has none, or the model.

    Returns what a stage after this one starts from, once the folder is the run's `final`.
    """
    target, company = run / "final", built.company
    if built.adapters is None:
        _save_model(built, folder)
        return Start(str(target.resolve()))
    base = _base_of(built, run)
    tensors = company.put_together(adapter_tensors(built.adapters, POLICY))
    if company.ranks.first:
        save_adapter(built.adapters, POLICY, folder, base_model=base, tensors=tensors)
        write_storage(folder, built.loaded.storage)
    return Start(base, target.resolve())


def _save_model(built: BuiltPolicy, folder: Path) -> None:
    """Write the model in the format that it was read in; trained weights that are cut over ranks are float32."""
    weights = built.company.put_together(built.model.weights())
    if built.company.cuts:
        narrow = {id(value): value.to(built.dtype) for value in weights.values() if value.is_floating_point()}
        weights = {name: narrow.get(id(value), value) for name, value in weights.items()}
    if built.company.ranks.first:
        built.model.save(folder, weights)


def save_tokenizer(tokenizer: Any, template: Template | None, folder: Path) -> None:
    """Save the tokenizer, with the template that training used as its chat template."""
    before = tokenizer.chat_template
    if template is not None and template.source:
        tokenizer.chat_template = template.source
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _base_of(built: BuiltPolicy, run: Path) -> str:
    """The base that the adapter belongs to; written out when it exists only in memory."""
    if not built.merged_start:
        return built.start.model
    base, first = run / "base", built.company.ranks.first
    if built.company.ranks.from_first(base.is_dir()):
        return str(base.resolve())
    staging = fresh_staging(base) if first else staging_of(base)
    with built.adapters.use(None):  # type: ignore[union-attr]
        _save_model(built, staging)
    if first:
        save_tokenizer(built.loaded.tokenizer, None, staging)
        publish(staging, base)
    return str(base.resolve())
