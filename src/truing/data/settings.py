"""The `data:` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from truing.core.settings import Settings
from truing.data.format_names import FormatName

LossOn = Literal["assistant", "last", "all"]


class DataSettings(Settings):
    """What a stage learns from, and how rows become tokens."""

    path: str | tuple[str, ...]
    """A file, several files, or a hub id (`org/name`, `org/name:split`).

    JSON, JSONL, CSV, Parquet and plain text (a row for each passage between blank lines) are read, also gzipped."""

    format: FormatName | None = None
    """What the columns mean. Left out, it is guessed from the columns of the first rows, and the guess is reported."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Names for columns that are called otherwise: our column name → the file's (`completion: response`)."""

    max_length: int = Field(default=1024, ge=2)
    """The most tokens that a prompt and one completion may have together. Prompts are cut from their start."""

    loss_on: LossOn = "assistant"
    """Which tokens of a demonstration are trained: every `assistant` turn, the `last` one only, or `all` tokens."""

    packing: bool = True
    """Fill each micro-batch with several rows end to end. Rows never see each other either way."""

    shuffle: bool = True
    """Visit the rows in a new random order in every epoch; otherwise in the order of the file."""

    limit: int | None = Field(default=None, ge=1)
    """Read only the first so many rows."""

    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The fraction of rows kept out of training for evaluation. Split by prompt: no prompt is on both sides."""

    eval_path: str | None = None
    """A file of its own for evaluation, in place of `holdout`."""

    on_bad_row: Literal["stop", "drop"] = "stop"
    """What a row that cannot be used does: `stop` the run with a list, or be dropped and counted in `data.json`."""

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @field_validator("path")
    @classmethod
    def _names_a_file(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (path,) if isinstance(path, str) else path
        if not names or not all(name.strip() for name in names):
            raise ValueError("expected the name of a file or a list of names")
        return path

    @model_validator(mode="after")
    def _one_way_to_evaluate(self) -> DataSettings:
        if self.holdout > 0 and self.eval_path is not None:
            raise ValueError("'holdout' and 'eval_path' are two ways to evaluate; give one of them")
        return self
