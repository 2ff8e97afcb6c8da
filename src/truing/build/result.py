"""The result of a stage: a folder that `transformers` or `peft` load as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truing.build.policy import POLICY, BuiltPolicy, Start
from truing.data.templates import Template
from truing.models.lora.peft_format import save_adapter
from truing.training.disk import on_disk
from truing.training.manifest import write_manifest
from truing.training.progress import Reporter
from truing.training.run_directory import fresh_staging, publish


def write_final(built: BuiltPolicy, template: Template, run: Path, card: str, reporter: Reporter) -> Start:
    """Write `final/`: the adapter or the model, tokenizer, chat template and model card. Return it as a start."""
    target = run / "final"
    staging = fresh_staging(target)
    with on_disk(target):
        if built.adapters is None:
            built.model.save(staging)
            result = Start(str(target.resolve()))
        else:
            base = _base_of(built, run)
            save_adapter(built.adapters, POLICY, staging, base_model=base)
            result = Start(base, target.resolve())
        save_tokenizer(built.loaded.tokenizer, template, staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
        write_manifest(staging)
        publish(staging, target)
    reporter.say(f"  result: {target}")
    return result


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
