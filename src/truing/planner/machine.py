"""What there is to train on: this machine's memory, a card by name, or a size."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from truing.core.errors import InputError, suggest
from truing.planner.setting import DeviceKind

GIB = 2**30
UNITS = {"gb": GIB, "gib": GIB, "g": GIB, "mb": 2**20, "mib": 2**20, "m": 2**20}
"""A card sold with "24 GB" has 24 GiB, so sizes on the command line are binary whatever they are called."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a model is trained."""

    name: str
    device: DeviceKind
    memory: int
    """Bytes."""
    rate: float | None = None
    """Operations a second of dense bf16 products (fp16 where a card has no bf16)."""
    bandwidth: float | None = None
    """Bytes a second."""


def _card(name: str, gib: int, teraflops: float, gigabytes: float) -> Machine:
    return Machine(name, "cuda", gib * GIB, teraflops * 1e12, gigabytes * 1e9)


CARDS = {
    card.name: card
    for card in (
        _card("t4", 16, 65.0, 320),
        _card("l4", 24, 121.0, 300),
        _card("a10g", 24, 70.0, 600),
        _card("rtx3060", 12, 51.0, 360),
        _card("rtx3090", 24, 71.0, 936),
        _card("rtx4060ti-16gb", 16, 88.0, 288),
        _card("rtx4090", 24, 165.2, 1008),
        _card("rtx5090", 32, 209.5, 1792),
        _card("a6000", 48, 154.8, 768),
        _card("l40s", 48, 362.0, 864),
        _card("v100", 32, 125.0, 900),
        _card("a100-40gb", 40, 312.0, 1555),
        _card("a100-80gb", 80, 312.0, 2039),
        _card("h100", 80, 989.4, 3350),
        _card("h200", 141, 989.4, 4800),
        _card("b200", 180, 2250.0, 8000),
    )
}
"""Memory, dense bf16 (T4, V100: fp16) tensor rate with float32 sums, and bandwidth, from NVIDIA's data sheets and
architecture white papers: T4, V100, A10G, L4, L40S, A100, H100 SXM, H200 SXM, B200 data sheets; GA102, AD102 and
Blackwell RTX white papers for the cards of the RTX line."""


def named_card(name: str) -> Machine:
    """Return a card by name, or one of a given memory: `rtx4090`, `24GB`."""
    word = name.lower().replace(" ", "").replace("_", "-")
    if word in CARDS:
        return CARDS[word]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", word)
    if size is not None and size[2] in UNITS:
        return Machine(name, "cuda", int(float(size[1]) * UNITS[size[2]]))
    raise InputError(f"--gpu {name}: expected a size such as 24GB, or a card{suggest(word, CARDS)}")


def this_cpu() -> Machine:
    """Return this machine's RAM, or what the container that we are in may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        _number(Path(file)) for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    ]
    return Machine("this machine's RAM", "cpu", min([total, *(limit for limit in limits if limit is not None)]))


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
