"""The one training loop. Methods differ in their objective and in where their steps come from, not here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from truing.core.errors import NonFinite, PreflightFailed, Stopped, Unhealthy
from truing.models.roles import Trained
from truing.objectives.base import Objective
from truing.training import checkpoint, moving_reference, rollout_state
from truing.training.checkpoint import Checkpoint
from truing.training.evaluation import evaluate
from truing.training.gradient import accumulate
from truing.training.guards import FILE as EVENTS
from truing.training.guards import Event, Guards, strongest
from truing.training.judge_signs import START
from truing.training.memory_failure import naming
from truing.training.moving_reference import MovingReference
from truing.training.optimizer import Optimizer
from truing.training.progress import Reporter, peak_memory_bytes
from truing.training.ranks import ALONE, Ranks
from truing.training.run_directory import RunDirectory
from truing.training.schedule import rate_factor
from truing.training.settings import CheckpointSettings, OptimSettings
from truing.training.signs import Complaint
from truing.training.source import PreparedStep, Source
from truing.training.stopping import ERRORS, Stop, stop_when_asked
from truing.training.trackers.followed import Trackers

SHOWN = (
    ("rewards/margins", "margin"),
    ("rewards/accuracies", "accuracy"),
    ("margin", "margin"),
    ("accuracy", "accuracy"),
    ("kl", "kl"),
    ("objective/scores", "score"),
    ("objective/kl", "kl"),
    ("eval_loss", "eval"),
    ("eval_scores", "eval"),
    ("judge/score", "judge"),
)
"""Metrics worth a place beside the bar, and their names there."""

HISTORY = ("metrics.jsonl", "samples.jsonl", EVENTS)
"""What grows by lines while a run goes on."""
RESTORED = "restored_step"
"""In the last row: the step whose state is the result."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """When a run does what, beside updating."""

    optim: OptimSettings
    checkpoint: CheckpointSettings
    evaluate_every: int
    sample_every: int | None
    vocab_size: int
    seed: int = 0


@dataclass(slots=True)
class Progressed:
    """What a run has behind it; saved with every checkpoint."""

    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    ended: bool = False
    """Whether the run is over before its last step."""
    memory: dict[str, float] = field(default_factory=dict)
    """What the objective remembers from step to step."""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(eq=False)
class Trainer:
    """Runs a source's steps through a policy and an objective."""

    policy: Trained
    objective: Objective
    source: Source
    optimizer: Optimizer
    plan: Plan
    run: RunDirectory
    reporter: Reporter
    trackers: Trackers
    guards: Guards = field(default_factory=Guards)
    evaluate: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None
    """Measures on held-out rows, given what the objective remembers."""
    at_start: Callable[[], Mapping[str, float]] | None = None
    """Measures the policy as the stage begins; what it finds goes into the first row of metrics.jsonl."""
    sample: Callable[[int], Sequence[Mapping[str, Any]]] | None = None
    """Completes the fixed prompts after so many steps; returns rows of samples.jsonl."""
    peak_memory: Callable[[], int] = peak_memory_bytes
    """The most memory used so far, in bytes, where the model is."""
    moving: MovingReference | None = None
    """The reference, where it does not stay as the stage began."""
    at_end: Callable[[], Mapping[str, float]] | None = None
    """Measures the trained policy; what it finds goes into the last row of metrics.jsonl."""
    before_checkpoint: Callable[[], None] | None = None
    """Writes what a resumed run will need besides the checkpoint."""
    ranks: Ranks = ALONE
    """Who trains together with this process."""
    progressed: Progressed = field(default_factory=Progressed)
    _saved: tuple[int, bool] | None = None
    """The step of the last checkpoint, and whether the run had ended."""

    @property
    def checkpoints(self) -> Path:
        return self.run.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Where the weights of the best state are kept."""
        return self.checkpoints / "best"

    def restore(self, saved: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        others = ("random.", moving_reference.PREFIX, rollout_state.PREFIX)
        tensors = saved.read({**self.optimizer.blank_state(), **self._of_reference()})
        self.optimizer.load_state({k: v for k, v in tensors.items() if not k.startswith(others)})
        if self.moving is not None:
            self.moving.load_state(tensors)
        self.source.load_state(tensors, saved.values["source"])
        self.progressed = Progressed(**saved.values["progressed"])
        self._saved = (saved.step, self.progressed.ended)
        for name in HISTORY:
            self.run.truncate_lines(name, saved.step)
        rows, events = self.ranks.from_first([self.run.rows("metrics.jsonl"), self.run.rows(EVENTS)])
        self.guards.resume(rows, events)
        checkpoint.restore_random_states(saved.tensors, saved.values["random"])

    def forget(self) -> None:
        """Delete the history of a run that was cut before its first checkpoint."""
        self.run.delete(*HISTORY)

    def fit(self, before: Sequence[Complaint] = (), until: int | None = None) -> None:
        """Train from where the run stands to its end, or to a step before it.

        `before` is what was found wrong before the first step. Raises Stopped when a signal asks for it, after the step
        in progress and a checkpoint.
        """
        if self.progressed.ended:
            return  # a resumed run that was cut between its end and its result
        total = self.source.total_steps
        last = total if until is None else min(until, total)
        if self.ranks.first:
            checkpoint.check_space(self.checkpoints, self.optimizer.state_bytes, self.plan.checkpoint)
        started = self._begin(before) if self.progressed.step == 0 else {}
        shown = [_shown(row) for row in self.run.rows("metrics.jsonl")]
        self.reporter.begin(self.objective.name, total, self.progressed.step, shown)
        steps = self.source.steps(self.progressed.step)
        try:
            with stop_when_asked(told=self.ranks.first) as stop:
                self._all_steps(steps, total, last, stop, started)
        finally:
            self.reporter.end()

    def _all_steps(
        self, steps: Iterator[PreparedStep], total: int, last: int, stop: Stop, started: Mapping[str, float]
    ) -> None:
        """Make the steps up to `last`; figures of the start go into the first one's row."""
        clock = time.perf_counter()
        while not self.progressed.ended and self.progressed.step < last and (step := self._prepared(steps)) is not None:
            self._one_step(step, total, clock, started if step.index == 0 else {})
            asked = self._asked(stop)
            if asked is not None and not self.progressed.ended:
                self.save()
                raise asked(f"stopped after step {self.progressed.step} of {total}, which is saved")
            clock = time.perf_counter()
        if self.progressed.step < last:  # a guard has ended it, or the source, and said why
            if not self.progressed.ended and self.progressed.step > 0:
                self._measure_end()
            self.progressed.ended = True
            self.run.truncate_lines("samples.jsonl", self.progressed.step - 1)
            self._write_samples(self.progressed.step)
            self.save()

    def _asked(self, stop: Stop) -> type[Stopped] | None:
        """Whether anybody was asked to stop, so that all ranks stop after the same step."""
        return next((ERRORS[number] for number in self.ranks.everyone(stop.signal) if number is not None), None)

    def _measure_end(self) -> None:
        """What is measured at the end, where only the lack of another step has told that it is there."""
        if self.at_end is not None:
            self.run.add_to_last("metrics.jsonl", _finite(self.at_end()))

    def _prepared(self, steps: Iterator[PreparedStep]) -> PreparedStep | None:
        with naming(f"while step {self.progressed.step + 1} was prepared"):
            return next(steps, None)

    def _begin(self, found: Sequence[Complaint]) -> dict[str, float]:
        """What comes before the first step; returns figures of the start for its row."""
        events = self.guards.before(found)
        self._say(events, {})
        self._stop(events)
        self._write_samples(0)
        if self.at_start is None:
            return {}
        measured = self.at_start()
        if self.guards.keeps_best:
            self._keep_best()
        return {f"{START}{name}": value for name, value in measured.items()}

    def _one_step(self, step: PreparedStep, total: int, clock: float, started: Mapping[str, float]) -> None:
        """Make a step and all that is due after it; to prepare it took since `clock`."""
        row = {**self._update(step, total), **started}
        row["seconds"] = time.perf_counter() - clock
        self.progressed.seconds += row["seconds"]
        done = self.progressed.step
        if self.evaluate is not None and (done % self.plan.evaluate_every == 0 or done == total):
            row |= self.evaluate(self.progressed.memory)
        row = self.ranks.from_first(row)  # what follows from a figure follows from the same one everywhere
        events = self.guards.after(_finite(row))
        if self.guards.is_best(row):
            self._keep_best()
        restored = self._restored(events)
        row |= restored
        if (done == total or self.progressed.ended) and self.at_end is not None:
            row |= self.at_end()
        row["memory_bytes"] = max(self.ranks.everyone(self.peak_memory()))
        self.run.append("metrics.jsonl", _finite(row))
        self._say(events, restored)
        self.trackers.log(done, row)
        self.reporter.advance(done, _shown(row))
        self._stop(events)
        if done == total or (self.plan.sample_every and done % self.plan.sample_every == 0):
            self._write_samples(done)
        if done % self.plan.checkpoint.every == 0 or done == total:
            self.save()

    def _update(self, step: PreparedStep, total: int) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics.jsonl."""
        factor = rate_factor(step.index, total, self.plan.optim) * self.guards.rate
        self.optimizer.begin(factor)
        memory, seed = self.progressed.memory, self.plan.seed
        loss, metrics = accumulate(self.policy, self.objective, step, memory, self.ranks, seed)
        metrics |= self.objective.derived(metrics)
        self.optimizer.add_over(self.ranks)
        norm = self.optimizer.clip()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if step.index == 0:
            self._preflight(step, loss, norm, metrics)
        if finite:
            with naming(f"in the update of step {step.index + 1}"):
                self.optimizer.step()
            self.progressed.memory = self.objective.remember(self.progressed.memory, metrics)
        self._count(step, finite)
        if self.moving is not None:
            self.moving.after(self.progressed.step)
        peak = self.plan.optim.lr or 0.0
        return {
            "step": self.progressed.step,
            "loss": loss,
            "learning_rate": peak * factor,
            "grad_norm": norm,
            "tokens": step.tokens,
            "num_tokens": self.progressed.tokens,
            "rows": self.progressed.rows,
            "skipped_steps": self.progressed.skipped,
            **step.metrics,
            **metrics,
        }

    def _preflight(self, step: PreparedStep, loss: float, norm: float, metrics: Mapping[str, float]) -> None:
        """Refuse to make the first update when something known to be true is not."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise PreflightFailed(
                f"preflight: the first loss is {loss} and its gradient norm {norm}; both must be finite"
            )
        if norm == 0.0 and not step.silent:
            raise PreflightFailed("preflight: the first gradient is zero everywhere; the run would learn nothing")
        if self.policy.noisy:  # what is known of the first loss is known of it without dropout
            found = evaluate(
                self.policy,
                self.objective,
                step.batches,
                lambda batch: batch,
                self.progressed.memory,
                step.fillers,
                self.ranks,
            )
            metrics = {name.removeprefix("eval_"): value for name, value in found.items()}
            loss = metrics["loss"]
        complaint = self.objective.start_complaint(loss, {**step.metrics, **metrics}, self.plan.vocab_size)
        if complaint:
            raise PreflightFailed(f"preflight: {complaint}")

    def _count(self, step: PreparedStep, finite: bool) -> None:
        self.progressed.step = step.index + 1
        self.progressed.rows = step.rows_done
        self.progressed.tokens += step.tokens
        self.progressed.skipped += not finite
        if not finite:
            self.reporter.warn(f"step {self.progressed.step} has no finite gradient and was skipped")

    def _restored(self, events: Sequence[Event]) -> dict[str, int]:
        """Go back to the best state if a guard asks for it; returns its step for the last row."""
        event = strongest(events)
        if event is None or event.action != "restore":
            return {}
        best, _ = checkpoint.load_latest(self.best, self.ranks)
        if best is None:
            return {}
        self.optimizer.load_state(best.read(self.optimizer.blank_state()))
        self.progressed.ended = True
        return {RESTORED: best.step}

    def _say(self, events: Sequence[Event], restored: Mapping[str, int]) -> None:
        """Say and record what guards saw and did."""
        for event in events:
            self.run.append(EVENTS, event.as_json())
            follows = ""
            if event.action == "lower":
                follows = f" The learning rate is halved, to {self.guards.rate:g} of the schedule's."
            elif event.action == "restore" and restored:
                follows = f" Training ends here, and the result is the best state, that of step {restored[RESTORED]}."
            self.reporter.warn(event.sentence + follows)

    def _stop(self, events: Sequence[Event]) -> None:
        """Stop the run if a guard asks for it, or for a best state where there is none yet."""
        event = strongest(events)
        if event is None or event.action not in ("stop", "restore") or self.progressed.ended:
            return
        if event.monitor == "non_finite":
            raise NonFinite(f"{event.sentence} The last good state is in {self.checkpoints}")
        if event.step == 0:
            raise Unhealthy(f"{event.sentence} guards.{event.monitor} is stop, so nothing was trained")
        self.save()
        none = "restore, but no state was measured yet" if event.action == "restore" else "stop"
        raise Unhealthy(
            f"{event.sentence} guards.{event.monitor} is {none}; the state of step {event.step} is saved, and "
            f"`truing resume {self.run.path}` goes on all the same"
        )

    def _keep_best(self) -> None:
        """Keep the weights of this moment, in place of those that were the best before."""
        weights = {name: tensor for name, tensor in self.optimizer.state().items() if name.startswith("weight.")}
        checkpoint.save_alone(self.best, self._checkpoint(weights, {}, {}), self.ranks)

    def save(self) -> None:
        """Write a checkpoint of this moment, unless it is written already."""
        now = (self.progressed.step, self.progressed.ended)
        if self._saved == now:
            return
        self.run.flush(*HISTORY)
        if self.before_checkpoint is not None:
            self.before_checkpoint()
        tensors, values = checkpoint.random_states()
        of_source, source = self.source.state()
        state = self._checkpoint(
            {**self.optimizer.state(), **self._of_reference()},
            {**tensors, **of_source},
            {"progressed": self.progressed.as_json(), "random": values, "source": source},
        )
        checkpoint.save(self.checkpoints, state, self.plan.checkpoint, self.ranks)
        self._saved = now

    def _of_reference(self) -> dict[str, Tensor]:
        return self.moving.state() if self.moving is not None else {}

    def _checkpoint(self, moved: dict[str, Tensor], others: dict[str, Tensor], values: dict[str, Any]) -> Checkpoint:
        """The state of this moment; what moves with training is cut over ranks where the optimizer's parameters are."""
        if self.optimizer.cut:
            return Checkpoint(self.progressed.step, others, values, moved)
        return Checkpoint(self.progressed.step, {**moved, **others}, values)

    def _write_samples(self, done: int) -> None:
        rows = self.sample(done) if self.sample else ()
        for row in rows:
            self.run.append("samples.jsonl", row)
        self.trackers.show(done, rows)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a figure that is not finite is written as null, never as a number that looks like one."""
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()}


def _shown(row: Mapping[str, Any]) -> dict[str, float]:
    """The few figures worth a place beside the bar, of a row as it was made or as metrics.jsonl has it."""
    shown = {"loss": row["loss"]}
    for key, name in SHOWN:
        if key in row:
            shown[name] = row[key]
    shown = {name: math.nan if value is None else value for name, value in shown.items()}
    shown["tok/s"] = row["tokens"] / max(row["seconds"], 1e-9)
    shown["GB"] = row["memory_bytes"] / 1e9
    return shown
