"""What there is to train on: this machine's memory, a card by name, or a size."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from truing.core.errors import InputError, suggest
from truing.planner.catalog import Catalog, catalog
from truing.planner.setting import DeviceKind

GIB = 2**30
UNITS = {"gb": GIB, "gib": GIB, "g": GIB, "mb": 2**20, "mib": 2**20, "m": 2**20}
"""A card sold with "24 GB" has 24 GiB, so sizes on the command line are binary whatever they are called."""

SHARE = 0.4
"""Of a device's rate for plain products, what a whole step reaches where nobody has measured it. Well-fed GPUs reach
0.4 to 0.7; small models and short rows reach less, so that a run tells its own after the first steps."""


SHARE_OF_OWN = 0.75
"""The same of a rate that was timed with the model's own products, on a CPU."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device reaches while it trains."""

    products: float
    """Operations a second of linear layers."""
    attention: float
    """Operations a second of attention."""
    bandwidth: float | None = None
    """Bytes a second of everything between products; None: their time is in the two above."""
    reading: float | None = None
    """Bytes a second of weights while completions are written; None where it is not known, and then it is left out."""
    launch: float = 0.0
    """Seconds that an operation takes however small it is; 0: their time is in the two above."""
    said: str = ""
    """Where they come from."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a model is trained."""

    name: str
    device: DeviceKind
    memory: int
    """Bytes."""
    rates: Rates | None = None
    link: float | None = None
    """Bytes a second that a collective reaches each way between devices of a node."""


def shared_rate(rate: float, share: float = SHARE) -> Rates:
    """Rates of a device of which no more is known than how fast its plain products are."""
    return Rates(rate * share, rate * share, said=f"{share:.0%} of {rate / 1e12:,.3g} TFLOP/s")


def named_card(name: str) -> Machine:
    """Return a card by name, or one of a given memory: `rtx4090`, `24GB`."""
    word = card_word(name)
    known = catalog()
    if word in known.cards:
        return _card(word, known)
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", word)
    if size is not None and size[2] in UNITS:
        return Machine(name, "cuda", int(float(size[1]) * UNITS[size[2]]))
    raise InputError(f"--gpu {name}: expected a size such as 24GB, or a card{suggest(word, known.cards)}")


def card_word(name: str) -> str:
    """A card's name as it is listed."""
    return name.lower().replace(" ", "").replace("_", "-")


def _card(word: str, known: Catalog) -> Machine:
    card = known.cards[word]
    share = known.shares[word].share if word in known.shares else SHARE
    rates = replace(shared_rate(card.teraflops * 1e12, share), reading=card.bandwidth * 1e9)
    return Machine(word, "cuda", card.memory * GIB, rates, card.link * 1e9)


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
