"""Run TRL's KTO on normalised judgements, in their order, and record every step.

TRL gives every prompt the answer of the row before it in its forward pass (the first row that of the last) and takes
the KL estimate from these. Here it gets the mismatched answers it is told to use, and everything else is its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import recording
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

MISMATCHED = "KL_completion_ids"


class RecordedKTO(recording.Recorded, KTOTrainer):
    """TRL's trainer with given mismatched answers; its loss is a mean over the rows of a micro-batch."""

    def __init__(self, record: recording.Record, *, mismatched: list[list[int]] | None, **given: Any) -> None:
        self._mismatched = mismatched
        super().__init__(record, **given)

    def _prepare_dataset(self, *given: Any, **named: Any) -> Dataset:
        rows = super()._prepare_dataset(*given, **named)
        if self._mismatched is None:
            return rows
        return rows.remove_columns(MISMATCHED).add_column(MISMATCHED, self._mismatched)


def read_mismatched(path: Path | None) -> list[list[int]] | None:
    """The mismatched answers out of the file that says what every row must become."""
    if path is None:
        return None
    return [row["mismatched"] for row in json.loads(path.read_text(encoding="utf-8"))]


def main() -> None:
    parser = recording.arguments(__doc__)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--desirable-weight", type=float, default=1.0)
    parser.add_argument("--undesirable-weight", type=float, default=1.0)
    chosen = parser.parse_args()
    settings = KTOConfig(
        **recording.common_settings(chosen),
        beta=chosen.beta,
        desirable_weight=chosen.desirable_weight,
        undesirable_weight=chosen.undesirable_weight,
    )

    def trainer(record: recording.Record, rows: Dataset) -> RecordedKTO:
        return RecordedKTO(
            record,
            mismatched=read_mismatched(chosen.tokens),
            adapter=chosen.adapter,
            model=str(chosen.model),
            args=settings,
            train_dataset=rows,
        )

    recording.run(
        chosen,
        trainer,
        lambda row: {"prompt": row["prompt_ids"], "completion": row["completion_ids"], "mismatched": row[MISMATCHED]},
    )


if __name__ == "__main__":
    main()
