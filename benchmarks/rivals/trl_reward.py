"""Run TRL's reward modelling on normalised pairs, in their order, and record every step."""

from __future__ import annotations

from pathlib import Path

import recording
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

HEAD = "score"


class RecordedReward(recording.Recorded, RewardTrainer):
    """TRL's trainer, its score head zero at first; its loss is a mean over the pairs of a micro-batch."""

    def adapter_settings(self, folder: Path) -> LoraConfig:
        """The start adapter's settings for a classifier, whose head is trained and saved with the adapter."""
        settings = super().adapter_settings(folder)
        settings.task_type = "SEQ_CLS"
        settings.modules_to_save = [HEAD]
        return settings

    def other_weights(self) -> dict[str, torch.Tensor]:
        return {f"base_model.model.{HEAD}.weight": torch.zeros(1, self.model.config.hidden_size)}


def main() -> None:
    chosen = recording.arguments(__doc__).parse_args()
    settings = RewardConfig(**recording.common_settings(chosen))

    def trainer(record: recording.Record, rows: Dataset) -> RecordedReward:
        return RecordedReward(
            record, adapter=chosen.adapter, model=str(chosen.model), args=settings, train_dataset=rows
        )

    recording.run(chosen, trainer, lambda row: {"chosen": row["chosen_ids"], "rejected": row["rejected_ids"]})


if __name__ == "__main__":
    main()
