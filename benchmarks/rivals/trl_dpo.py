"""Run TRL's DPO on normalised pairs, in their order, and record every step."""

from __future__ import annotations

import recording
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


class RecordedDPO(recording.Recorded, DPOTrainer):
    """TRL's trainer; its loss is a mean over the pairs of a micro-batch."""


def main() -> None:
    parser = recording.arguments(__doc__)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--precompute", action="store_true", help="reference log-probs before training")
    chosen = parser.parse_args()
    settings = DPOConfig(
        **recording.common_settings(chosen),
        beta=chosen.beta,
        precompute_ref_log_probs=chosen.precompute,
    )

    def trainer(record: recording.Record, rows: Dataset) -> RecordedDPO:
        return RecordedDPO(record, adapter=chosen.adapter, model=str(chosen.model), args=settings, train_dataset=rows)

    recording.run(
        chosen,
        trainer,
        lambda row: {"prompt": row["prompt_ids"], "chosen": row["chosen_ids"], "rejected": row["rejected_ids"]},
    )


if __name__ == "__main__":
    main()
