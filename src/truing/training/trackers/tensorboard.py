"""TensorBoard: event files, read by `tensorboard --logdir RUN`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.training.trackers.settings import TensorboardSettings
from truing.training.trackers.tracker import TrackedRun, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_tracker(settings: TensorboardSettings, about: TrackedRun) -> Tracker:
    """Write to a new event file; readers forget what older ones say of steps that are made again."""
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(settings.folder) if settings.folder is not None else about.folder / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=about.step + 1 if about.run_id is not None else None)
    tracker = _Tensorboard(writer, str(folder), about.step)
    if about.run_id is None:
        tracker.write("recipe", json.dumps(about.parameters, indent=2, ensure_ascii=False), 0)
    return tracker


class _Tensorboard:
    def __init__(self, writer: SummaryWriter, run_id: str, logged: int) -> None:
        self._writer, self._run_id, self._logged = writer, run_id, logged

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def logged(self) -> int:
        """Not what earlier files hold: events that a killed process kept back are lost, and have to come again."""
        return self._logged

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._logged = step

    def show(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        for number, sample in enumerate(samples, 1):
            self.write(f"samples/{number}", f"{sample['prompt']}\n⟶\n{sample['completion']}", step)

    def end(self, *, finished: bool) -> None:
        self.write("state", "finished" if finished else "failed", self._logged)
        self._writer.close()

    def write(self, tag: str, text: str, step: int) -> None:
        """Show text as it is: TensorBoard takes it for Markdown, in which indented lines are code."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self._writer.add_text(tag, indented, step)
