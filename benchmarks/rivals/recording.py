"""What a TRL trainer is made to tell: the loss of every step unrounded, its seconds, the peak memory, the versions."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from datasets import Dataset
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


class Recorded:
    """What is mixed into a TRL trainer: file order, the start adapter, the unrounded loss and the tokens of every step.

    For trainers whose loss is a mean over the rows of a micro-batch; all micro-batches are equally large.
    """

    def __init__(self, record: Record, *, adapter: Path | None, **given: Any) -> None:
        self._record = record
        clock = [StepClock(record)]
        if adapter is None:
            super().__init__(callbacks=clock, **given)
            return
        super().__init__(peft_config=self.adapter_settings(adapter), callbacks=clock, **given)
        load_start(self.model, adapter, self.other_weights())

    def adapter_settings(self, folder: Path) -> LoraConfig:
        return adapter_settings(folder)

    def other_weights(self) -> dict[str, torch.Tensor]:
        """What begins at given values and is not in the adapter's folder, by its name there."""
        return {}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> FixedOrder:
        return FixedOrder(list(range(len(self.train_dataset))))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._record.pending += loss.item() / self.args.gradient_accumulation_steps
        for name in inputs:
            if name.endswith("attention_mask"):
                self._record.step_tokens[-1] += int(inputs[name].sum())
                self._record.step_padded_tokens[-1] += inputs[name].numel()
        return loss


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options every rival program has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="LoRA folder to start from, its B zero; without: all weights")
    parser.add_argument("--data", type=Path, required=True, help="rows.jsonl")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tokens", type=Path, help="JSON list of the tokens that every row must become")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast")
    parser.add_argument(
        "--weights", choices=["float32", "bfloat16"], default="float32", help="type of the base weights"
    )
    parser.add_argument("--matmul", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, TRL's default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--liger", action="store_true", help="Liger's kernels, where they are installed")
    parser.add_argument("--rows", type=int, default=4, help="rows in one optimizer step")
    parser.add_argument("--micro", type=int, default=0, help="rows per forward pass; 0: the whole step at once")
    return parser


def common_settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """Settings of `TrainingArguments` that all comparisons share."""
    micro = chosen.micro or chosen.rows
    if chosen.rows % micro:
        raise SystemExit(f"--micro {micro} does not divide the {chosen.rows} rows of a step")
    return {
        "output_dir": str(chosen.report.parent / "trainer"),
        "use_cpu": chosen.device == "cpu",
        "max_steps": chosen.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": chosen.rows // micro,
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
        "use_liger_kernel": chosen.liger,
    }


def adapter_settings(folder: Path) -> LoraConfig:
    """The start adapter's settings; TRL then builds the adapter itself and takes the bare base as reference.

    Handing TRL a `PeftModel` instead makes it keep a second copy of the adapter for the reference: the same numbers,
    since B is zero, for more work.
    """
    settings = LoraConfig.from_pretrained(str(folder))
    settings.inference_mode = False
    return settings


def load_start(model: Any, folder: Path, others: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
    """Put the start adapter's weights, and `others`, into TRL's adapter."""
    weights = load_peft_weights(str(folder), device="cpu")
    if any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights.items()):
        raise SystemExit(f"{folder}: lora_B is not zero, so the bare base would not be the reference")
    outcome = set_peft_model_state_dict(model, {**weights, **others})
    if outcome.unexpected_keys:
        raise SystemExit(f"{folder}: weights that match nothing: {outcome.unexpected_keys}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def check_tokens(rows: list[Mapping[str, list[int]]], expected_file: Path | None, limit: int, count: int) -> None:
    """Stop unless TRL kept all `count` rows whole, and made of each the tokens that `expected_file` holds for it."""
    longest = max(len(row.get("prompt", [])) + max(len(row[side]) for side in row if side != "prompt") for row in rows)
    if longest > limit or len(rows) != count:
        raise SystemExit(f"TRL would cut or drop rows: {len(rows)} of {count} left, longest {longest} tokens")
    if expected_file is None:
        return
    expected = json.loads(expected_file.read_text(encoding="utf-8"))
    for number, (wanted, got) in enumerate(zip(expected, rows, strict=True), start=1):
        if wanted != got:
            raise SystemExit(f"row {number}: TRL trains on other tokens than the tokenizer gives; losses cannot agree")


def run(
    chosen: argparse.Namespace,
    make: Callable[[Record, Dataset], Any],
    tokens_of: Callable[[Mapping[str, Any]], Mapping[str, list[int]]],
) -> None:
    """Let `make` build the trainer, check what it made of the rows, train, and write what was recorded."""
    torch.set_float32_matmul_precision(chosen.matmul)
    rows = Dataset.from_list(read_rows(chosen.data))
    record = Record()
    began = time.perf_counter()
    trainer = make(record, rows)
    record.prepare_seconds = time.perf_counter() - began
    check_tokens([tokens_of(row) for row in trainer.train_dataset], chosen.tokens, chosen.limit, len(rows))
    trainer.train()
    write_report(chosen.report, record, chosen)


def write_report(path: Path, record: Record, chosen: argparse.Namespace, **more: Any) -> None:
    """Write what was recorded; peak memory is the most that was resident, and on a GPU what its allocator held."""
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
        "allocated_bytes": torch.cuda.max_memory_allocated() if chosen.device == "cuda" else None,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **more,
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
