"""Run TRL's SFT with packing on normalised demonstrations and record every step, or only say how it packs them."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import recording
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer


class RecordedSFT(SFTTrainer):
    """TRL's trainer, which tells the unrounded loss and takes the packed rows in a given order."""

    def __init__(
        self,
        record: recording.Record,
        *,
        model: str,
        args: SFTConfig,
        rows: Dataset,
        adapter: Path | None,
        order: Path | None,
    ) -> None:
        self._record = record
        self._order = order
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            peft_config=None if adapter is None else recording.adapter_settings(adapter),
            callbacks=[recording.StepClock(record)],
        )
        if adapter is not None:
            recording.load_start(self.model, adapter)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> recording.FixedOrder:
        if self._order is None:
            return recording.FixedOrder(list(range(len(self.train_dataset))))
        return recording.FixedOrder(json.loads(self._order.read_text(encoding="utf-8")))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Already a share of the step: divided by the supervised tokens of all its micro-batches.
        self._record.pending += loss.item()
        present = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
        self._record.step_tokens[-1] += int(present)
        self._record.step_padded_tokens[-1] += inputs["input_ids"].numel()
        return loss


def which_examples(packed: Dataset, single: list[list[int]]) -> list[list[int]]:
    """For every packed row, the indices of the examples that it holds, found by their tokens."""
    where: dict[tuple[int, ...], deque[int]] = defaultdict(deque)
    for index, tokens in enumerate(single):
        where[tuple(tokens)].append(index)
    rows = []
    for row in packed:
        start, members = 0, []
        for length in row["seq_lengths"]:
            members.append(where[tuple(row["input_ids"][start : start + length])].popleft())
            start += length
        rows.append(members)
    return rows


def direct_tokens(rows: list[dict[str, Any]], tokenizer: Any) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=True, return_dict=True)["input_ids"]
        for row in rows
    ]


def token_report(trainer: RecordedSFT, single: list[list[int]]) -> dict[str, Any]:
    """The packed rows with their labels, and the examples in them."""
    packed = trainer.train_dataset
    return {
        "examples": which_examples(packed, single),
        "input_ids": [row["input_ids"] for row in packed],
        "labels": [row["labels"] for row in packed],
    }


def main() -> None:
    parser = recording.arguments(__doc__)
    parser.add_argument("--order", type=Path, help="JSON list of packed rows to take, in this order")
    parser.add_argument("--plan-only", action="store_true", help="write which examples each packed row holds, and stop")
    parser.add_argument("--unpacked", action="store_true", help="pad examples instead; --rows then counts examples")
    chosen = parser.parse_args()
    torch.set_float32_matmul_precision(chosen.matmul)
    settings = SFTConfig(
        **recording.common_settings(chosen),
        packing=not chosen.unpacked,
        packing_strategy="bfd",
        completion_only_loss=True,
    )
    rows = recording.read_rows(chosen.data)
    record = recording.Record()
    began = time.perf_counter()
    trainer = RecordedSFT(
        record,
        model=str(chosen.model),
        args=settings,
        rows=Dataset.from_list(rows),
        adapter=chosen.adapter,
        order=chosen.order,
    )
    record.prepare_seconds = time.perf_counter() - began
    if not chosen.unpacked:
        single = direct_tokens(rows, trainer.processing_class)
        if max(map(len, single)) > chosen.limit:
            raise SystemExit("a row is longer than a packed row, so TRL would cut it")
        plan = token_report(trainer, single)
        chosen.report.with_suffix(".packed.json").write_text(json.dumps(plan), encoding="utf-8")
    if not chosen.plan_only:
        trainer.train()
    recording.write_report(chosen.report, record, chosen)


if __name__ == "__main__":
    main()
