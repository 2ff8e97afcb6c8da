"""What is told of the methods: true of the code, the same in the terminal and on the pages, and never old."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from tests.build.runs import metrics
from tests.objectives.trees import Told, random_columns, step_of, told, trees_for
from truing.build.chain import run
from truing.build.methods import MethodText, describe, overview
from truing.core.batch import collate
from truing.core.settings import settings_in
from truing.objectives.base import Objective
from truing.objectives.registry import discover, find
from truing.recipe.load import recipe_from
from truing.recipe.schema import Stage
from truing.training.evaluation import evaluate
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldSettings, write_world

KNOWN = discover()
LEARNED_FROM_ROWS = [name for name, cls in KNOWN.items() if cls.examples != "prompt"]
"""Methods whose figures a tiny batch shows; the others need someone to write completions."""


@pytest.fixture(scope="module")
def trainer_keys(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What the trainer itself writes into metrics.jsonl, found in a run."""
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=20, pairs=10))
    write_base_model(folder / "model")
    recipe = {
        "model": str(folder / "model"),
        "adapter": {"use": "lora", "rank": 2},
        "samples": {"count": 0},
        "objective": {"use": "sft"},
        "data": {"path": str(files.demonstrations), "max_length": 48, "holdout": 0.2},
        "optim": {"max_steps": 1},
    }
    run(recipe_from(recipe), folder / "run", Silent())
    (row,) = metrics(next((folder / "run").rglob("metrics.jsonl")).parent)
    return set(row) - {"nll", "eval_nll"}


def objective_keys(objective: Objective) -> set[str]:
    """What an objective adds to a line of metrics.jsonl, with its evaluation."""
    rng = np.random.default_rng(1)
    batch = collate(trees_for(objective, rng, 6))
    columns = told([batch], *random_columns(batch, rng))
    _, found = step_of(objective, columns)
    return set(found) | set(evaluate(Told(), objective, columns, lambda bare: bare, {}))


def recipe_keys(cls: type[BaseModel] = Stage, prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        for inner in settings_in(field.annotation):
            yield from recipe_keys(inner, f"{prefix}{name}.")


@pytest.mark.parametrize("name", LEARNED_FROM_ROWS)
def test_what_is_named_in_backquotes_exists(name: str, trainer_keys: set[str]) -> None:
    cls = KNOWN[name]
    fields = {field for other in KNOWN.values() for field in other.model_fields}
    known = trainer_keys | objective_keys(cls()) | set(recipe_keys()) | fields | set(KNOWN)
    named = set(re.findall(r"`([^`]+)`", f"{cls.avoid} {cls.watch} {cls.failure}"))
    assert {word for word in named if not word.startswith("truing ")} <= known


def test_the_hollow_of_discopop_is_where_its_page_says() -> None:
    """Margins between it and the hill are drawn down, others up; from τ 0.12 on the loss only falls."""

    def slope(margin: float, tau: float) -> float:
        objective = find("discopop")(beta=1.0, tau=tau)  # type: ignore[call-arg]
        batch = collate(trees_for(objective, np.random.default_rng(2), 1))
        z = torch.zeros(batch.num_targets).requires_grad_(True)
        chosen = (batch.target_completion == batch.pairs[0, 0]).float()
        shifted = z + margin * chosen / chosen.sum()
        loss, _ = step_of(objective, told([batch], shifted, torch.zeros_like(z)))
        (gradient,) = torch.autograd.grad(loss, z)
        return float(gradient @ chosen)

    assert slope(-0.13, 0.05) < 0 < slope(-0.11, 0.05)
    assert slope(0.06, 0.05) > 0 > slope(0.08, 0.05)
    assert max(slope(margin, 0.12) for margin in np.linspace(-1, 1, 81)) < 0


@pytest.mark.parametrize("name", KNOWN)
def test_the_terminal_and_the_page_say_the_same(name: str, reference: ModuleType) -> None:
    text, page = MethodText.of(KNOWN[name]), reference.method_page(KNOWN[name])
    printed = _plain(describe(name))
    fields = [part for field in text.fields for part in (field.name, field.default, field.meaning)]
    for part in (text.purpose, text.avoid, text.equation, *text.explanation, *text.watch, *text.failure, *fields):
        assert _plain(part) in printed
        assert _plain(part) in _plain(page)
    assert name in overview()


def test_an_objective_that_says_nothing_of_itself_is_told_all_the_same(reference: ModuleType) -> None:
    class Bare(find("kto")):  # type: ignore[misc]
        name: ClassVar[str] = "bare"
        examples: ClassVar = "prompt"
        purpose = avoid = watch = failure = paper = ""
        count: int
        """Without a default."""

    page = reference.method_page(Bare)
    assert "| learns from | prompts |" in page
    assert "| `count` | `required` | Without a default. |" in page
    assert "##" not in page.replace("## Fields", "")


def test_a_users_objective_without_texts_is_described(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from truing.api import Objective, Share\n\n\n"
        "class Mine(Objective):\n    examples = 'demonstration'\n\n"
        "    def __call__(self, outputs, batch, totals):\n        return Share(outputs.logprobs.sum())\n"
    )
    assert describe(f"{file}:Mine").splitlines()[0] == "Mine"
    assert "demonstrations" in describe(f"{file}:Mine")


def test_old_missing_and_orphaned_pages_are_found_and_mended(tmp_path: Path, reference: ModuleType) -> None:
    reference.write(tmp_path)
    assert reference.outdated(tmp_path) == []
    (tmp_path / "methods" / "dpo.md").write_text("what it once said")
    (tmp_path / "methods" / "kto.md").unlink()
    (tmp_path / "methods" / "gone.md").write_text(reference.NOTE + "# gone")
    (tmp_path / "by_hand.md").write_text("# not ours")
    assert reference.outdated(tmp_path) == ["methods/dpo.md", "methods/kto.md", "methods/gone.md"]
    reference.write(tmp_path)
    assert reference.outdated(tmp_path) == []
    assert (tmp_path / "by_hand.md").is_file()


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which is a script."""
    file = Path(__file__).parents[2] / "docs" / "reference.py"
    spec = importlib.util.spec_from_file_location("docs_reference", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(text: str) -> str:
    """Words only: no layout, links or backquotes."""
    bare = re.sub(r"\[([^\]]+)\]\([^)]+\.md\)|\[(arXiv:[^\]]+)\]\([^)]+\)", lambda m: m[1] or m[2], text)
    return " ".join(bare.replace("`", "").replace("\\|", "|").split())
