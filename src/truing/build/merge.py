"""`truing merge`: an adapter folded into its base, and the measured difference."""

from __future__ import annotations

from pathlib import Path

from truing.build.load_result import RESULT, is_scorer, open_result, open_scorer
from truing.build.result import save_tokenizer
from truing.core.errors import AdapterError, RunError
from truing.models.lora.merge import merge_adapter
from truing.training.disk import on_disk
from truing.training.manifest import write_manifest
from truing.training.run_directory import fresh_staging, publish


def merge_run(path: Path, output: Path) -> str:
    """Merge in float32, refuse above tolerance, save a plain model folder; return what to tell the user."""
    if output.exists():
        raise RunError(f"{output} exists already; give another --output")
    opened = open_scorer(path) if is_scorer(path) else open_result(path)
    packed = opened.loaded.storage is not None
    if opened.adapters is None:
        raise AdapterError(f"{path} has no adapter: its result is a whole model already")
    vocabulary = min(len(opened.tokenizer), opened.model.vocab_size)
    probe = [[(7 * i + 13 * row) % vocabulary for i in range(24)] for row in range(4)]
    with opened.model.stock_attention():
        report = merge_adapter(opened.adapters, RESULT, probe)
    staging = fresh_staging(output)
    with on_disk(output):
        opened.model.save(staging)
        save_tokenizer(opened.tokenizer, None, staging)
        write_manifest(staging)
        publish(staging, output)
    over = " (into the unpacked 4-bit base that it was trained over, not into the original one)" if packed else ""
    return f"merged into {output}{over}\n{report.sentence}"
