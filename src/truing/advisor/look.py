"""Looks at data, model and machine, and makes a case and a ground of them. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from truing.advisor.case import Case
from truing.advisor.ground import DataFile, Ground
from truing.audit.audit import Audit, audit
from truing.audit.facts import DataFacts
from truing.core.errors import DataError
from truing.core.files import read_json
from truing.core.trees import ExampleKind
from truing.data.records import read
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import Architecture, read_architecture
from truing.planner.machine import Machine
from truing.planner.methods import METHODS
from truing.planner.plan import make_plan
from truing.planner.rows import TOKENS_PER_WORD, TURN, counter
from truing.planner.setting import Base, Setting, Work, even_row

FEW_TURNS = 4
"""Turns of a conversation that room is left for, beside its words."""
STEP = 64
"""Lengths are rounded up to a multiple of it."""
LONGEST = 8192
LEAST_MICRO_TOKENS = 256
SAMPLE = 100
"""Rows of a file whose tokens are counted."""
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments."""

    model: str
    data: tuple[str, ...]
    machine: Machine
    known: Mapping[str, Any]
    """What a person said of the case, by the names of its fields."""
    template: str | None = None
    rewards: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What was found."""

    audits: tuple[Audit, ...]
    """One a file."""
    case: Case
    ground: Ground
    architecture: Architecture


def look(asked: Asked, on_progress: Progress) -> Look:
    """Check every file, read the model's config.json, and see what fits.

    Raises InputError where a file cannot be used at all, or the model's folder is none.
    """
    architecture = read_architecture(Path(asked.model))
    audits = tuple(audit([path], limit=asked.limit, on_progress=on_progress) for path in asked.data)
    for one in audits:
        _usable(one)
    files = tuple(_file(one) for one in audits)
    templated = _has_template(Path(asked.model))
    length, answer, cut = _lengths(audits, asked.model, architecture)
    ground = Ground(
        model=asked.model,
        files=files,
        max_length=length,
        answer_tokens=answer,
        template=asked.template or (None if templated else "plain"),
        rewards=asked.rewards,
    )
    case = replace(
        _case_of([one.facts for one in audits]),
        cut=cut,
        parameters=architecture.numbers,
        full_fits=_fits(architecture, None, length, asked.machine),
        lora_fits=_fits(architecture, AdapterSettings(), length, asked.machine),
        qlora_fits=_fits(architecture, AdapterSettings(base="nf4"), length, asked.machine),
        tuned=templated,
    )
    unknown = {name: value for name, value in asked.known.items() if value is not None}
    assert unknown.keys() <= {field.name for field in fields(Case)}
    return Look(audits, replace(case, **unknown), ground, architecture)


def _usable(found: Audit) -> None:
    """A file in which nothing can be read is no ground for advice."""
    if found.facts.rows:
        return
    said = next((one for one in found.findings if one.level == "stop"), None)
    why = f"{said.sentence}; {said.remedy}" if said is not None else "no row can be used"
    raise DataError(f"{found.files[0]}: {why}")


def _file(found: Audit) -> DataFile:
    facts = found.facts
    kinds: dict[ExampleKind, int] = {
        "demonstration": facts.demonstrations,
        "comparison": facts.comparisons,
        "judgement": facts.judgements,
        "prompt": facts.bare_prompts,
    }
    kind = max(kinds, key=lambda one: kinds[one])
    return DataFile(found.files[0], kind, kinds[kind])


def _case_of(facts: Sequence[DataFacts]) -> Case:
    """Counts are summed; a share is that of the file with the most rows that has one.

    Shares that were measured with an interval are taken at the bound that they are certain to be beyond.
    """
    most = sorted(facts, key=lambda one: -one.rows)
    desirable, undesirable = (sum(getattr(one, name) for one in facts) for name in ("desirable", "undesirable"))
    total = Counter({name: sum(getattr(one, name) for one in facts) for name in ("demonstrations", "comparisons")})

    def certain(name: str) -> float | None:
        found = next((getattr(one, name) for one in most if getattr(one, name) is not None), None)
        return None if found is None else float(found.low)

    return Case(
        demonstrations=total["demonstrations"],
        comparisons=total["comparisons"],
        judgements=sum(one.judgements for one in facts),
        prompts=sum(one.bare_prompts for one in facts),
        examples=total.total() + desirable,
        classes=(desirable > 0) + (undesirable > 0) if desirable + undesirable else None,
        imbalance=max(desirable, undesirable) / min(desirable, undesirable) if desirable and undesirable else None,
        longer_wins=certain("longer_wins"),
        shortcut=certain("shortcut"),
        noise=certain("noise"),
        duplicates=sum(one.duplicates * one.rows for one in facts) / max(1, sum(one.rows for one in facts)),
    )


def _has_template(folder: Path) -> bool:
    """Whether the model's tokenizer comes with a chat template, as those of tuned models do."""
    if any((folder / name).is_file() for name in TEMPLATE_FILES):
        return True
    try:
        settings = read_json(folder / "tokenizer_config.json")
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _lengths(audits: Sequence[Audit], model: str, architecture: Architecture) -> tuple[int, int, bool]:
    """Tokens of nearly every row (99th percentile, rounded up) and answer, and whether many rows are cut."""
    rate = _tokens_a_word(audits, model)
    most = min(architecture.context or LONGEST, LONGEST)

    def tokens(of: Callable[[DataFacts], int]) -> int:
        return round(rate * max(of(one.facts) for one in audits)) + FEW_TURNS * TURN

    row = tokens(lambda facts: facts.prompt_length.p99 + facts.completion_length.p99)
    answer = tokens(lambda facts: facts.completion_length.p99)
    usual = tokens(lambda facts: max(facts.prompt_length.p95, facts.completion_length.p95))
    return min(most, max(2 * STEP, STEP * -(-row // STEP))), min(most, answer), usual > most


def _tokens_a_word(audits: Sequence[Audit], model: str) -> float:
    """Of the first rows of each file, under the model's own tokenizer."""
    folder = Path(model)
    if not (folder / "tokenizer.json").is_file():
        return TOKENS_PER_WORD
    count = counter(folder)
    texts = [text for one in audits for record in read(one.files[0]).records[:SAMPLE] for text in _texts(record.values)]
    words = sum(len(text.split()) for text in texts)
    return sum(map(count, texts)) / words if words else TOKENS_PER_WORD


def _texts(value: object) -> Iterator[str]:
    """All texts inside a row, whatever its format."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _texts(each))


def _fits(architecture: Architecture, adapter: AdapterSettings | None, length: int, machine: Machine) -> bool:
    """Whether SFT on rows of a length fits at the most frugal setting that trains the same weights."""
    base: Base = "bf16" if machine.device == "cuda" or architecture.dtype in ("bfloat16", "float16") else "fp32"
    setting = Setting("sft", METHODS["sft"], adapter, base, machine.device, True, LEAST_MICRO_TOKENS)
    row = even_row(setting.method, length, setting.new_tokens, 1)
    work = Work.of_steps([[[row]]], 1)
    return bool(make_plan(architecture, setting, lambda micro_tokens: work, machine).fits)
