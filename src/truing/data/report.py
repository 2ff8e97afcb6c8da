"""What was read, dropped and cut: `data.json` of a run directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from truing.core.trees import Origin, Tree
from truing.data.truncation import Cuts


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file as it was read."""

    name: str
    sha256: str
    format: str
    guess: str
    rows: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long many texts are: percentiles, in tokens unless something else is said."""

    p50: int
    p95: int
    p99: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int] | npt.NDArray[np.integer]) -> Lengths:
        """Percentiles of a list of lengths; zeros for none."""
        if not len(lengths):
            return cls(0, 0, 0, 0)
        p50, p95, p99 = np.percentile(lengths, [50, 95, 99], method="higher")
        return cls(int(p50), int(p95), int(p99), int(np.max(lengths)))


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything that happened between the files and the trees."""

    files: tuple[FileReport, ...]
    template: str
    template_sha256: str | None
    rows_read: int
    rows_used: int
    """Rows that became trees, held-out ones included."""
    trees: int
    held_out: int
    """Trees kept out of training."""
    dropped: Mapping[str, tuple[Origin, ...]]
    """Reason → rows."""
    cuts: Cuts
    prompt_tokens: Lengths
    completion_tokens: Lengths
    supervised_tokens: int
    duplicates: int
    """Trees that repeat an earlier one exactly."""
    notes: tuple[str, ...]
    evaluation: DataReport | None = None
    """The same of `eval_path`."""

    def lines(self) -> list[str]:
        """What a person should know before training on these rows, a sentence a line."""
        told = [f"{file.name}: {file.rows} rows, {file.guess}" for file in self.files]
        held = f", {self.held_out} held out" if self.held_out else ""
        told.append(
            f"{self.rows_used} of {self.rows_read} rows used{held}; template {self.template}; "
            f"prompt and completion tokens: median {self.prompt_tokens.p50} and {self.completion_tokens.p50}, "
            f"longest {self.prompt_tokens.max} and {self.completion_tokens.max}"
        )
        return [*told, *self.notes]

    def as_json(self) -> dict[str, object]:
        """The report as JSON values; row numbers are grouped by file."""
        return {
            "files": [asdict(file) for file in self.files],
            "template": {"name": self.template, "sha256": self.template_sha256},
            "rows": {"read": self.rows_read, "used": self.rows_used},
            "trees": {"train": self.trees - self.held_out, "held_out": self.held_out},
            "dropped": {reason: by_file(rows) for reason, rows in self.dropped.items()},
            "truncated": asdict(self.cuts),
            "tokens": {
                "prompt": asdict(self.prompt_tokens),
                "completion": asdict(self.completion_tokens),
                "supervised": self.supervised_tokens,
            },
            "duplicates": self.duplicates,
            "notes": list(self.notes),
            "evaluation": None if self.evaluation is None else self.evaluation.as_json(),
        }


def count_duplicates(trees: Iterable[Tree]) -> int:
    """Count the trees that repeat an earlier one: tokens, masks, labels and pairs."""
    seen = [(tree.digest(), tuple(c.label for c in tree.completions), tree.pairs) for tree in trees]
    return len(seen) - len(set(seen))


def by_file(rows: Sequence[Origin]) -> dict[str, list[int]]:
    """Row numbers under the names of their files."""
    found: dict[str, list[int]] = {}
    for origin in rows:
        found.setdefault(origin.file, []).append(origin.row)
    return found
