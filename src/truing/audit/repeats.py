"""Rows that say the same again, and prompts that are trained on and tested on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from truing.audit.finding import Finding, Level, cleaning, graded, percent
from truing.audit.material import PARTS, Material, plain
from truing.audit.near import SHINGLE, SIMILAR, near_pairs
from truing.audit.words import WordLists
from truing.data.examples import Demonstration, Example, Judgement
from truing.data.faults import counted

WARN, STRONG = 0.05, 0.20
"""Repeats are common (a tenth of a crawl); a fifth of the rows twice weighs some answers more than anybody chose."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """Indices of examples that repeat an earlier one."""

    exact: tuple[int, ...]
    near: tuple[int, ...]


def find_repeats(material: Material, on_progress: Callable[[int, int], None]) -> Repeats:
    """Find exact repeats, and among all other examples near ones."""
    first: dict[Hashable, int] = {}
    exact = tuple(i for i, example in enumerate(material.examples) if first.setdefault(_key(material, i), i) != i)
    kept = list(first.values())
    items = [range(PARTS * index, PARTS * (index + 1)) for index in kept]
    near = sorted({kept[later] for _, later in near_pairs(material.words, items, on_progress)})
    return Repeats(exact, tuple(near))


def repeats_findings(material: Material, repeats: Repeats) -> list[Finding]:
    """The checks `duplicates` and `near_duplicates`."""
    near = f"nearly an earlier row again (prompt and answers share {percent(SIMILAR)} of their {SHINGLE}-word runs)"
    return [
        _finding(material, "duplicates", repeats.exact, "exactly an earlier row again", ""),
        _finding(material, "near_duplicates", repeats.near, near, " --near"),
    ]


def leakage_finding(material: Material, test: Sequence[Example]) -> Finding:
    """The check `leakage`: prompts that are in both the training and the test data."""
    tested = {_asked(example) for example in test}
    shared = [index for index, example in enumerate(material.examples) if _asked(example) in tested]
    prompts = len({_asked(material.examples[index]) for index in shared})
    figures = {"prompts": float(prompts), "share": prompts / len(tested)}
    rows = material.rows(shared)
    if shared:
        return Finding(
            "leakage",
            "stop",
            f"{counted(prompts, 'prompt')} of the test data ({percent(prompts / len(tested))}) "
            f"{'is' if prompts == 1 else 'are'} also trained on, in {counted(len(rows), 'row')}",
            "truing data split FILE --output DIR, which keeps each prompt on one side; results on this test data "
            "would be too good",
            rows,
            material.quotes(shared),
            figures,
        )
    near = _near_prompts(material, test)
    if near:
        return Finding(
            "leakage",
            "warn",
            f"{counted(len(material.rows(near)), 'row')} with nearly a prompt of the test data again (they share "
            f"{percent(SIMILAR)} of their {SHINGLE}-word runs)",
            "take these rows out of the training data, or read results on the test data with care",
            material.rows(near),
            material.quotes(near),
            figures | {"near": len(near)},
        )
    return Finding("leakage", "ok", f"none of {counted(len(tested), 'test prompt')} is trained on", figures=figures)


def _asked(example: Example) -> str:
    """What an example asks, raw text and messages alike; plain text counts as its own prompt."""
    words = example.prompt
    if isinstance(example, Demonstration) and not words:
        words = example.completion
    return plain(words).strip()


def _near_prompts(material: Material, test: Sequence[Example]) -> list[int]:
    """Indices of examples whose prompt is nearly one of the test's; test prompts stand first, so all meet them."""
    asked = [_asked(example) for example in test]
    first: dict[int, int] = {}
    for index, prompt in enumerate(material.prompts.tolist()):
        first.setdefault(prompt, index)
    trained = list(first.values())
    texts = [*dict.fromkeys(text for text in asked if text)]
    border = len(texts)
    lists = WordLists.of([*texts, *(_asked(material.examples[index]) for index in trained)])
    pairs = near_pairs(lists, [(number,) for number in range(len(texts) + len(trained))])
    numbers = {int(material.prompts[trained[later - border]]) for earlier, later in pairs if earlier < border <= later}
    return [index for index, prompt in enumerate(material.prompts.tolist()) if prompt in numbers]


def _finding(material: Material, check: str, indices: Sequence[int], what: str, options: str) -> Finding:
    share = material.share(indices)
    level: Level = "strong" if share >= STRONG else graded(share, WARN, STRONG)
    rows = material.rows(indices)
    how_many = f"{counted(len(rows), 'row')} ({percent(share)})" if indices else "no row"
    sentence = f"{how_many} {'is' if len(rows) < 2 else 'are'} {what}"
    remedy = "" if level == "ok" else cleaning(rows, options)
    return Finding(check, level, sentence, remedy, rows, material.quotes(indices), {"share": share})


def _key(material: Material, index: int) -> Hashable:
    """What makes two examples one: kind, texts with their roles, and label."""
    example = material.examples[index]
    label = example.label if isinstance(example, Judgement) else None
    texts = tuple(material.texts[PARTS * index : PARTS * (index + 1)])
    return type(example).__name__, texts, label
