"""From a case to a decision, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truing.advisor.case import Case
from truing.advisor.rules import Input, Rule, Rules, rules

NOT_TRAINED = ("none", "relabel", "collect")
"""Answers that say not to train."""

WEIGHTS = {"lora": "LoRA", "qlora": "LoRA over a 4-bit base", "none": "all weights", "none_fits": "a smaller model"}
"""What the adapter rules advise, in words."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The rule of each group that decided, and every warning."""

    method: Rule
    variant: Rule | None
    adapter: Rule
    warnings: tuple[Rule, ...]

    @property
    def name(self) -> str:
        """What is advised, in a word: a method, or one of `NOT_TRAINED`."""
        return str(self.method.advise["method"])

    @property
    def trains(self) -> bool:
        """Whether there is something to train, and room to do it in."""
        return self.name not in NOT_TRAINED and self.weights != "none_fits"

    @property
    def objective(self) -> Mapping[str, Any]:
        """The objective of the last stage."""
        decided = self.variant or self.method
        return dict(decided.advise.get("objective", {}))

    @property
    def use(self) -> str:
        """The objective's name, or what is advised instead of training."""
        return self.name if self.name in (*NOT_TRAINED, "best_of_n") else str(self.objective["use"])

    @property
    def weights(self) -> str:
        """What is trained: a key of `WEIGHTS`."""
        return str(self.adapter.advise["adapter"])

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained, over whatever base."""
        return self.weights in ("lora", "qlora")


@dataclass(frozen=True, slots=True)
class Change:
    """Something that would change the answer."""

    input: str
    sentence: str
    """The condition in words."""
    use: str
    """What would be advised, in a few words."""


def decide(case: Case, book: Rules | None = None) -> Decision:
    """Take the first rule of each group whose conditions hold."""
    book = book or rules()
    method = _first(book.method, case, None)
    name = str(method.advise["method"])
    variants = [rule for rule in book.variant if name in rule.applies_to]
    warnings = tuple(rule for rule in book.warnings if rule.matches(case, name))
    return Decision(
        method, _first(variants, case, name) if variants else None, _first(book.adapter, case, name), warnings
    )


def runner_up(case: Case, book: Rules | None = None) -> Decision | None:
    """What would be advised if the answer were ruled out: the next method that fits, else the variant beside it."""
    book = book or rules()
    first = decide(case, book)
    if first.name in NOT_TRAINED:
        return None
    if first.variant is not None and first.variant.instead:
        beside = first.variant.model_copy(update={"advise": first.variant.instead, "because": ""})
        return replace(first, variant=beside)
    left = tuple(rule for rule in book.method if rule.advise["method"] != first.name)
    other = decide(case, book.model_copy(update={"method": left}))
    return other if other.trains else None


def changes(case: Case, book: Rules | None = None) -> tuple[Change, ...]:
    """Every input that would change what is advised if it alone were different, and to what.

    Counts and shares are moved just over each bound that a rule has; the nearest move to each answer is kept.
    """
    book = book or rules()
    now = decide(case, book)
    found: dict[tuple[str, str], tuple[float, Change]] = {}
    for name, known in book.inputs.items():
        for value in _others(name, known, case, book):
            there = decide(moved(case, name, value), book)
            if (there.use, there.adapter.advise) == (now.use, now.adapter.advise):
                continue
            distance = abs(float(value) - float(getattr(case, name) or 0)) if _numeric(known) else 0.0
            told = _told(there) if there.use != now.use else WEIGHTS[there.weights]
            change = Change(name, _sentence(known, value, getattr(case, name)), told)
            if (name, told) not in found or distance < found[name, told][0]:
                found[name, told] = (distance, change)
    return tuple(change for _, change in found.values())


def questions(case: Case, book: Rules | None = None) -> tuple[str, ...]:
    """The inputs that only a person knows, are not known yet, and whose answer can change the advice."""
    book = book or rules()
    matter = {change.input for change in changes(case, book)}
    return tuple(
        name for name, known in book.inputs.items() if known.question and getattr(case, name) is None and name in matter
    )


def _told(decision: Decision) -> str:
    return decision.method.answer.rstrip(".") if decision.name in NOT_TRAINED else decision.use


def _first(group: Sequence[Rule], case: Case, method: str | None) -> Rule:
    return next(rule for rule in group if rule.matches(case, method))


def _numeric(known: Input) -> bool:
    return known.kind in ("count", "share", "ratio")


def _others(name: str, known: Input, case: Case, book: Rules) -> Iterator[Any]:
    """Other values of an input: the far side of every bound, the other answer, every other choice."""
    if known.kind == "choice":
        yield from (option for option in known.options if option != getattr(case, name))
    elif not _numeric(known):
        yield from (value for value in (True, False) if value is not getattr(case, name))
    elif getattr(case, name) is not None:
        bounds = {float(one.value) for rule in book.everything() for one in rule.conditions if one.name == name}
        step = 1.0 if known.kind == "count" else 1e-3
        for bound in sorted(bounds):
            yield from (_typed(known, bound), _typed(known, bound - step), _typed(known, bound + step))


def _typed(known: Input, value: float) -> float:
    return max(0, round(value)) if known.kind == "count" else max(0.0, value)


def moved(case: Case, name: str, value: Any) -> Case:
    """The case with one input changed, and what follows from it."""
    other = case.knowing(name, value)
    if name in ("demonstrations", "comparisons") and value is not None:
        other = replace(other, examples=max(0, case.examples + int(value) - int(getattr(case, name))))
    return other


def _sentence(known: Input, value: Any, now: Any) -> str:
    if known.kind == "choice":
        return f"if {known.phrase} {known.options[value]}"
    if not _numeric(known):
        return f"if {known.phrase if value else known.otherwise}"
    if known.kind == "share":
        return f"with {'more' if value > now else 'less'} than {100 * round(value, 2):.0f} % {known.phrase}"
    bound = f"{value:,.0f}" if known.kind == "count" else f"{round(value):,}"
    return f"with {'at least' if value > now else 'only'} {bound} {known.phrase}"
