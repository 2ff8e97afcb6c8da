"""What a TRL trainer is made to tell: the loss of every step unrounded, its seconds, the peak memory, the versions."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
from torch.utils.data import Sampler
from transformers import TrainerCallback

PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch")


@dataclass
class Record:
    """What one run leaves behind."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    step_cpu_seconds: list[float] = field(default_factory=list)  # of all threads; steadier on a busy machine
    step_tokens: list[int] = field(default_factory=list)  # without padding
    step_padded_tokens: list[int] = field(default_factory=list)  # as the model computes them
    first_step_at: float = 0.0  # seconds since the epoch
    prepare_seconds: float = 0.0
    pending: float = 0.0
    last: float = 0.0
    last_cpu: float = 0.0

    def begin_training(self) -> None:
        self.last = time.perf_counter()
        self.last_cpu = time.process_time()

    def begin_step(self) -> None:
        self.pending = 0.0
        self.step_tokens.append(0)
        self.step_padded_tokens.append(0)

    def end_step(self) -> None:
        now = time.perf_counter()
        self.losses.append(self.pending)
        self.step_seconds.append(now - self.last)
        self.last = now
        cpu = time.process_time()
        self.step_cpu_seconds.append(cpu - self.last_cpu)
        self.last_cpu = cpu
        if not self.first_step_at:
            self.first_step_at = time.time()


class StepClock(TrainerCallback):
    """Times a step from the end of the one before, so that collating the next batch is part of it."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.begin_training()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.end_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "grad_norm" in logs:
            self.record.gradient_norms.append(float(logs["grad_norm"]))


class FixedOrder(Sampler[int]):
    """Yields the rows in the order given."""

    def __init__(self, order: list[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options every rival program has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="LoRA folder to start from; its B must be zero")
    parser.add_argument("--data", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument(
        "--weights", choices=["float32", "bfloat16"], default="float32", help="type of the base weights"
    )
    parser.add_argument("--matmul", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, TRL's default")
    parser.add_argument("--micro", type=int, default=0, help="rows per forward pass; 0: the whole step at once")
    return parser


def common_settings(chosen: argparse.Namespace, rows_per_step: int) -> dict[str, Any]:
    """Settings of `TrainingArguments` that both comparisons share."""
    micro = chosen.micro or rows_per_step
    if rows_per_step % micro:
        raise SystemExit(f"--micro {micro} does not divide the {rows_per_step} rows of a step")
    return {
        "output_dir": str(chosen.report.parent / "trainer"),
        "use_cpu": True,
        "max_steps": chosen.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows_per_step // micro,
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": chosen.dtype == "bf16",
        "gradient_checkpointing": chosen.checkpointing,
        "model_init_kwargs": {"dtype": chosen.weights},
        "max_length": chosen.limit,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def adapter_settings(folder: Path) -> LoraConfig:
    """The start adapter's settings; TRL then builds the adapter itself and takes the bare base as reference.

    Handing TRL a `PeftModel` instead makes it keep a second copy of the adapter for the reference: the same numbers,
    since B is zero, for more work.
    """
    settings = LoraConfig.from_pretrained(str(folder))
    settings.inference_mode = False
    return settings


def load_start(model: Any, folder: Path) -> None:
    """Put the start adapter's weights into TRL's adapter."""
    weights = load_peft_weights(str(folder), device="cpu")
    if any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights.items()):
        raise SystemExit(f"{folder}: lora_B is not zero, so the bare base would not be the reference")
    outcome = set_peft_model_state_dict(model, weights)
    if outcome.unexpected_keys:
        raise SystemExit(f"{folder}: weights that match nothing: {outcome.unexpected_keys}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_report(path: Path, record: Record, chosen: argparse.Namespace, **more: Any) -> None:
    """Write what was recorded; peak memory is the process's high-water mark of resident bytes."""
    report = {
        "settings": {key: str(value) for key, value in vars(chosen).items()},
        "versions": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "losses": record.losses,
        "gradient_norms": record.gradient_norms,
        "step_seconds": record.step_seconds,
        "step_cpu_seconds": record.step_cpu_seconds,
        "step_tokens": record.step_tokens,
        "step_padded_tokens": record.step_padded_tokens,
        "first_step_at": record.first_step_at,
        "prepare_seconds": record.prepare_seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **more,
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
