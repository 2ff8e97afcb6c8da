"""Run TRL's DPO on normalised pairs, in their order, and record every step."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import recording
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


class RecordedDPO(DPOTrainer):
    """TRL's trainer, which tells the unrounded loss and takes the rows in file order."""

    def __init__(self, record: recording.Record, *, model: str, args: DPOConfig, rows: Dataset, adapter: Path) -> None:
        self._record = record
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            peft_config=recording.adapter_settings(adapter),
            callbacks=[recording.StepClock(record)],
        )
        recording.load_start(self.model, adapter)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> recording.FixedOrder:
        return recording.FixedOrder(list(range(len(self.train_dataset))))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # A mean over the pairs of the micro-batch; all micro-batches are equally large.
        self._record.pending += loss.item() / self.args.gradient_accumulation_steps
        self._record.step_tokens[-1] += int(inputs["attention_mask"].sum())
        self._record.step_padded_tokens[-1] += inputs["input_ids"].numel()
        return loss


def main() -> None:
    parser = recording.arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="pairs in one optimizer step")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--precompute", action="store_true", help="reference log-probs before training")
    chosen = parser.parse_args()
    torch.set_float32_matmul_precision(chosen.matmul)
    settings = DPOConfig(
        **recording.common_settings(chosen, chosen.pairs),
        beta=chosen.beta,
        precompute_ref_log_probs=chosen.precompute,
    )
    rows = Dataset.from_list(recording.read_rows(chosen.data))
    record = recording.Record()
    began = time.perf_counter()
    trainer = RecordedDPO(record, model=str(chosen.model), args=settings, rows=rows, adapter=chosen.adapter)
    record.prepare_seconds = time.perf_counter() - began
    tokens = [
        {"prompt": row["prompt_ids"], "chosen": row["chosen_ids"], "rejected": row["rejected_ids"]}
        for row in trainer.train_dataset
    ]
    longest = max(len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in tokens)
    if longest > chosen.limit or len(tokens) != len(rows):
        raise SystemExit(f"TRL would cut or drop rows: {len(tokens)} of {len(rows)} left, longest {longest} tokens")
    chosen.report.with_suffix(".tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    trainer.train()
    recording.write_report(chosen.report, record, chosen)


if __name__ == "__main__":
    main()
