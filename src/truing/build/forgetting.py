"""What a stage costs elsewhere: loss on general text before and after it, and KL to the policy as it began.

Trained with full weights, the start is gone when the stage is over. So its log-probs over the whole vocabulary are kept
in the run directory, at as many evenly spaced positions as fit; with an adapter it is done in the same way.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from truing.build.policy import POLICY, BuiltPolicy
from truing.core.batch import Batch
from truing.core.errors import DataError
from truing.core.text import harmless
from truing.core.trees import Tree
from truing.data.encoding import encode
from truing.data.examples import Example
from truing.data.faults import counted
from truing.data.formats import detect, to_examples
from truing.data.records import Source, read
from truing.data.settings import DataSettings
from truing.data.templates import Template
from truing.models.drift import evenly, kl, text_loss
from truing.training.disk import on_disk
from truing.training.progress import Reporter
from truing.training.run_directory import RunDirectory, move, sync
from truing.training.settings import ForgettingSettings
from truing.training.source import fixed_batches

KEPT_BYTES = 64 * 2**20
"""Of the start's log-probs: 330 positions of GPT-2's vocabulary, 110 of Qwen's."""


@dataclass(frozen=True, slots=True)
class GeneralText:
    """Held-out texts, encoded."""

    path: str
    sha256: str
    trees: tuple[Tree, ...]


def check_text(settings: ForgettingSettings) -> None:
    """Read the file, if there is one to read, for its faults."""
    if settings.path is not None:
        _read(settings.path, settings.limit)


def encode_text(
    settings: ForgettingSettings, built: BuiltPolicy, template: Template, reporter: Reporter
) -> GeneralText | None:
    """Return the texts as trees with every token a target; None where nothing is to be measured, or can be."""
    if settings.path is None:
        return None
    if built.model.scores:
        reporter.say("  general text: not measured, for a reward model predicts no text")
        return None
    source, examples = _read(settings.path, settings.limit)
    length = min(settings.max_length, built.model.max_positions or settings.max_length)
    every = DataSettings(path=settings.path, max_length=length, loss_on="all")
    encoded = encode(
        examples, built.loaded.tokenizer, template, every, built.loaded.end_tokens, lambda done, total: None
    )
    encoded.lost.stop(f"forgetting.path: no token of these texts is within {length} tokens; mend {settings.path}")
    return GeneralText(settings.path, source.sha256, encoded.trees)


def _read(path: str, limit: int) -> tuple[Source, tuple[Example, ...]]:
    try:
        source = read(path)
        source = Source(source.name, source.sha256, source.records[:limit])
        converted = to_examples(source, detect(source).format, "demonstration", needed_by="forgetting")
        converted.faults.stop("Mend these rows, or take them out of the file")
    except DataError as fault:
        raise DataError(
            f"forgetting.path: {fault}\nGive held-out text: a .txt file, or rows with a column text (or messages, or "
            "prompt and completion); without forgetting.path nothing is measured"
        ) from None
    return source, converted.examples


class Forgetting:
    """Looks at the policy when it is made, which has to be before the stage, and again when it is called after it.

    What the first look found is kept in the run directory, and a resumed run takes it from there.
    """

    def __init__(
        self, text: GeneralText, built: BuiltPolicy, micro_tokens: int, run: RunDirectory, reporter: Reporter
    ) -> None:
        self._text, self._built, self._run, self._reporter = text, built, run, reporter
        self._batches: tuple[Batch, ...] = fixed_batches(
            text.trees, [tree.size for tree in text.trees], micro_tokens, built.model.collate, built.device
        ).batches
        self._tokens = sum(batch.num_targets for batch in self._batches)
        self._places = evenly(self._tokens, max(1, KEPT_BYTES // (4 * built.model.vocab_size)))
        self._before = self._kept_loss()
        if self._before is None:
            self._before = self._look_at_start()

    @property
    def file(self) -> Path:
        """The start's loss and its log-probs, float32 [n, V]."""
        return self._run.path / "reference" / "general_text.safetensors"

    def __call__(self) -> dict[str, float]:
        """Measure the policy as it now is; write forgetting.json, say it, and return its figures for metrics.jsonl."""
        divergences: list[Tensor] = []
        done = 0
        with safe_open(self.file, framework="pt") as kept:
            start = kept.get_slice("logprobs")

            def visit(now: Tensor) -> None:
                nonlocal done
                divergences.append(kl(start[done : done + len(now)].to(now.device), now).cpu())
                done += len(now)

            with self._as_policy():
                after = text_loss(self._built.model, self._batches, self._places, visit)
        each = torch.cat(divergences)
        mean, before = float(each.mean()), self._before
        assert before is not None
        error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        figures = {"loss_before": before, "loss_after": after, "kl": mean, "kl_standard_error": error}
        self._run.write_json(
            "forgetting.json",
            {
                "path": self._text.path,
                "sha256": self._text.sha256,
                "texts": len(self._text.trees),
                "tokens": self._tokens,
                "kl_positions": len(self._places),
                **{name: value if math.isfinite(value) else None for name, value in figures.items()},
            },
        )
        self._reporter.say(
            f"general text: loss {before:.3f} -> {after:.3f} nats a token, "
            f"KL to the start {mean:.3g} (at {len(self._places):,} of {self._tokens:,} tokens)"
        )
        return {f"forgetting/{name}": figures[name] for name in ("loss_before", "loss_after", "kl")}

    def _look_at_start(self) -> float:
        rows: list[Tensor] = []
        self._reporter.say(
            f"  general text: {counted(len(self._text.trees), 'text')}, {counted(self._tokens, 'token')} "
            f"({harmless(self._text.path)})"
        )
        with self._as_policy():
            loss = text_loss(self._built.model, self._batches, self._places, lambda start: rows.append(start.cpu()))
        staging = self.file.with_suffix(".part")
        tensors = {"loss": torch.tensor(loss, dtype=torch.float64), "logprobs": torch.cat(rows)}
        with on_disk(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, staging, metadata={"key": self._key()})
            sync(staging)
            move(staging, self.file)
        return loss

    def _kept_loss(self) -> float | None:
        """What an earlier look found, if it was at the same model and texts."""
        if not self.file.is_file():
            return None
        try:
            with safe_open(self.file, framework="pt") as kept:
                return float(kept.get_tensor("loss")) if (kept.metadata() or {}).get("key") == self._key() else None
        except (SafetensorError, OSError):
            return None

    def _key(self) -> str:
        """What the figures depend on: the start, its number formats, and the texts in the order of their batches."""
        built = self._built
        parts = [built.start_digest, str(built.dtype), built.calibration.matmul_precision, str(len(self._places))]
        parts += [digest for batch in self._batches for digest in batch.digests]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _as_policy(self) -> AbstractContextManager[None]:
        adapters = self._built.adapters
        return nullcontext() if adapters is None else adapters.use(POLICY)
