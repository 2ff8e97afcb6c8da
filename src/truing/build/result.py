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
from truing.models.lora.peft_format import save_adapter
from truing.models.nf4 import write_storage
from truing.training.disk import on_disk
from truing.training.manifest import write_manifest
from truing.training.progress import Reporter
from truing.training.run_directory import fresh_staging, publish, replace_file


def write_final(
    built: BuiltPolicy, template: Template, prompts: Sequence[Tree], run: Path, card: str, reporter: Reporter
) -> Start:
    """Write `final/`: the adapter or the model, tokenizer, chat template and model card. Return it as a start.

    Before it gets its name it is read back and answers some prompts. Where it answers otherwise than the policy in
    memory, which is of no use afterwards, it is there nevertheless, and ParityFailed is raised.
    """
    target = run / "final"
    staging = fresh_staging(target)
    with on_disk(target):
        result = write_weights(built, run, staging)
        save_tokenizer(built.loaded.tokenizer, template, staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
        write_manifest(staging)
    try:
        found = parity.measure(built, template, prompts, staging)
    except torch.OutOfMemoryError:  # the result is whole, and worth more than a figure about it
        reporter.warn("no memory left to read the result back beside what was trained")
        found = None
    if found is not None:
        replace_file(run / parity.FILE, json.dumps(found.as_json(), allow_nan=False) + "\n")
        reporter.say(f"  {found.sentence}")
    publish(staging, target)
    if found is not None and found.complaint is not None:
        raise ParityFailed(
            f"{target} is written, but {found.complaint}. The last checkpoint holds what was trained: delete {target} "
            "and resume to write it again, or resume to go on with it as it is"
        )
    reporter.say(f"  result: {target}")
    return result


def write_weights(built: BuiltPolicy, run: Path, folder: Path) -> Start:
    """Write the trained weights into a folder: the adapter, with its base in the run where it has none, or the model.

    Returns what a stage after this one starts from, once the folder is the run's `final`.
    """
    target = run / "final"
    if built.adapters is None:
        built.model.save(folder)
        return Start(str(target.resolve()))
    base = _base_of(built, run)
    save_adapter(built.adapters, POLICY, folder, base_model=base)
    write_storage(folder, built.loaded.storage)
    return Start(base, target.resolve())


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
    base = run / "base"
    if not base.is_dir():
        staging = fresh_staging(base)
        with built.adapters.use(None):  # type: ignore[union-attr]
            built.model.save(staging)
        save_tokenizer(built.loaded.tokenizer, None, staging)
        publish(staging, base)
    return str(base.resolve())
