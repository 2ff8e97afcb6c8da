"""What a person asks of `truing compare`, read from the command line's words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from truing.core.errors import InputError, suggest

Unit = Literal["tokens", "time", "steps"]

TIMES = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
EXAMPLES = "such as tokens=200k, time=60s or steps=100"


@dataclass(frozen=True, slots=True)
class Budget:
    """What every method may spend on training."""

    unit: Unit
    amount: float
    """Processed tokens, seconds in steps, or optimizer steps."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `tokens=200k`, `time=5min` or `steps=100`.

        >>> Budget.parse("tokens=1.5k"), Budget.parse("time=2m")
        (Budget(unit='tokens', amount=1500.0), Budget(unit='time', amount=120.0))
        """
        unit, _, amount = text.partition("=")
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", amount.strip().lower())
        factors = TIMES if unit == "time" else SIZES
        if unit not in ("tokens", "time", "steps") or found is None or found[2] not in factors:
            raise InputError(f"--budget {text}: expected a unit and an amount, {EXAMPLES}")
        value = float(found[1]) * factors[found[2]]
        if value <= 0 or (unit != "time" and value < 1):
            raise InputError(f"--budget {text} allows nothing to be trained; give more, {EXAMPLES}")
        return cls(unit, value)  # type: ignore[arg-type]

    def written(self) -> str:
        """As `parse` reads it."""
        return f"{self.unit}={self.amount:.15g}" + ("s" if self.unit == "time" else "")

    def __str__(self) -> str:
        return f"{self.amount:,.4g} s in steps" if self.unit == "time" else f"{self.amount:,.0f} {self.unit}"


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of one comparison."""

    recipes: tuple[str, ...]
    model: str | None
    start: str | None
    methods: tuple[str, ...]
    data: tuple[str, ...]
    output: Path
    template: str | None = None
    adapter: Literal["lora", "qlora", "none"] = "lora"
    rates: Mapping[str, float] | None = None
    budget: Budget | None = None
    seeds: int = 1
    reward: str | None = None
    reward_timeout: float = 60.0
    general: str | None = None
    limit: int | None = None
    held_out: float = 0.2
    evaluate_on: int = 200
    samples: int = 1
    max_length: int | None = None
    """By default 1,024 tokens, or as many as the model has positions for."""
    max_new_tokens: int = 64

    def check(self) -> None:
        """Refuse arguments that do not go together."""
        if self.recipes:
            self._check_recipes()
        else:
            self._check_methods()
        for name in self.rates or {}:
            if name not in self.methods:
                raise InputError(f"--lr names {name}, which is not compared{suggest(name, self.methods)}")

    def _check_recipes(self) -> None:
        own = {
            "--model": self.model,
            "--start": self.start,
            "--methods": self.methods,
            "--data": self.data,
            "--template": self.template,
            "--lr": self.rates,
        }
        for option, value in own.items():
            if value:
                raise InputError(f"{option} does not go with recipes, which say that themselves; leave out one of both")

    def _check_methods(self) -> None:
        if not self.methods:
            raise InputError(
                "nothing to compare: give recipes, or --model MODEL --methods sft,dpo --data FILE; `truing methods` "
                "lists the methods"
            )
        twice = next((name for name in self.methods if self.methods.count(name) > 1), None)
        if twice:
            raise InputError(f"--methods names {twice} twice; for several runs of a method give --seeds")
        if (self.model is None) == (self.start is None):
            found = "neither" if self.model is None else "both"
            raise InputError(f"expected --model MODEL or --start RUN, found {found}; give the one to begin with")
        if not self.data:
            raise InputError("--methods need data to learn from; give --data FILE, once for each file")

    def command(self) -> str:
        """The command as a person would type it again."""
        options = {
            "--model": self.model,
            "--start": self.start,
            "--methods": ",".join(self.methods) or None,
            "--template": self.template,
            "--adapter": self.adapter if not self.recipes else None,
            "--lr": ",".join(f"{name}={rate:g}" for name, rate in (self.rates or {}).items()) or None,
            "--budget": None if self.budget is None else self.budget.written(),
            "--seeds": self.seeds,
            "--reward": self.reward,
            "--general": self.general,
            "--limit": self.limit,
            "--held-out": self.held_out,
            "--evaluate-on": self.evaluate_on,
            "--samples": self.samples,
            "--max-length": self.max_length,
            "--max-new-tokens": self.max_new_tokens,
            "--output": self.output,
        }
        words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
        files = [word for file in self.data for word in ("--data", file)]
        return shlex.join(["truing", "compare", *self.recipes, *words, *files])

    def as_json(self) -> dict[str, Any]:
        """The arguments as values of JSON."""
        values = asdict(self)
        return {**values, "output": str(self.output), "budget": None if self.budget is None else self.budget.written()}


def parse_rates(text: str | None) -> dict[str, float] | None:
    """Read `dpo=1e-5,kto=5e-6`."""
    if text is None:
        return None
    rates = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            rates[name.strip()] = float(value)
        except ValueError:
            rates[name.strip()] = 0.0
        if not 0 < rates[name.strip()] < 10:
            raise InputError(f"--lr {part.strip()}: expected METHOD=RATE with a rate above 0, such as dpo=1e-5")
    return rates


def parse_methods(text: str | None) -> tuple[str, ...]:
    """Read `sft,dpo,kto`."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
