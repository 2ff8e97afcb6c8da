"""Cards and networks that are sold, each figure with the document that it comes from."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import yaml

from truing.core.settings import Settings


class Card(Settings):
    """A GPU."""

    memory: int
    """GiB."""
    teraflops: float
    """Of dense bf16 products with float32 sums; fp16 where a card has no bf16."""
    bandwidth: float
    """GB/s of its memory."""
    source: str
    link: float
    """GB/s that a collective reaches each way between cards of a node."""
    linked: str
    """What connects them."""


class Share(Settings):
    """How much of a card's rate whole steps reach that somebody has published."""

    share: float
    source: str


class Network(Settings):
    """What connects nodes."""

    gigabytes: float
    """GB/s each way that a collective reaches."""
    per: Literal["gpu", "node"]
    source: str


class Catalog(Settings):
    """Everything, by name."""

    sources: dict[str, str]
    cards: dict[str, Card]
    shares: dict[str, Share]
    networks: dict[str, Network]
    usual: dict[str, str]
    """The network of a card where nobody says which."""


@cache
def catalog() -> Catalog:
    """Read what comes with the package."""
    text = resources.files("truing.planner").joinpath("machines.yaml").read_text(encoding="utf-8")
    return Catalog.model_validate(yaml.safe_load(text))
