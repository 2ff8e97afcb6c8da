"""The vocabulary's loss alone, forward and backward to the hidden states with a frozen head: seconds and peak bytes.

Truing's chunks, the bare products they are made of, plain cross-entropy, and Liger's kernel where it is installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from truing.models.logprobs import linear_logprobs

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def truing(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -linear_logprobs(hidden, weight, targets)[0].sum()


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")


def products(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits and their way back, and nothing between: the floor."""
    return (hidden @ weight.t()).sum()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets)
    return loss


def measured(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds after one warm-up, peak bytes above what was there, the loss and the gradient's norm."""
    on_gpu = hidden.device.type == "cuda"
    seconds, value, norm, peak = [], 0.0, 0.0, 0
    for number in range(rounds + 1):
        hidden.grad = None
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        found = loss(hidden, weight, targets)
        found.backward()
        if on_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
        if number:
            seconds.append(time.perf_counter() - began)
        assert hidden.grad is not None
        value, norm = float(found), float(hidden.grad.float().norm())
    return {"seconds": statistics.median(seconds), "peak_bytes": peak, "loss": value, "gradient_norm": norm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("TOKENS", "WIDTH", "VOCABULARY"), required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--report", type=Path, required=True)
    chosen = parser.parse_args()
    tokens, width, vocabulary = chosen.shape
    generator = torch.Generator(chosen.device).manual_seed(0)
    kind = {"device": chosen.device, "dtype": torch.bfloat16}
    hidden = torch.randn(tokens, width, generator=generator, **kind).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, **kind) / width**0.5
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=chosen.device)
    losses: dict[str, Loss] = {"bare products": products, "plain cross-entropy": plain, "truing": truing}
    if find_spec("liger_kernel") is not None:
        losses["liger"] = liger
    found = {name: measured(loss, hidden, weight, targets, chosen.rounds) for name, loss in losses.items()}
    chosen.report.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
