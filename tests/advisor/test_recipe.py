from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.advisor.made import case, ground
from tests.advisor.test_rules import EXAMPLES
from truing.advisor.decide import decide
from truing.advisor.write_recipe import LORA_RATE, RATES, recipe_for, to_yaml
from truing.build import stage
from truing.build.chain import preview, run
from truing.core.errors import InputError
from truing.core.trees import ExampleKind
from truing.objectives.registry import find
from truing.recipe.load import load_recipe, recipe_from
from truing.training.progress import Silent

KINDS: tuple[ExampleKind, ...] = ("demonstration", "comparison", "judgement", "prompt")
TRAINED = [(known, use) for known, use in EXAMPLES if use not in ("none", "relabel", "collect")]


@pytest.fixture
def paid(tmp_path: Path) -> str:
    file = tmp_path / "rewards.py"
    file.write_text("def short(prompts, completions, **columns):\n    return [-float(len(c)) for c in completions]\n")
    return f"{file}:short"


@pytest.mark.parametrize("weights", ["lora", "none"])
@pytest.mark.parametrize(("known", "use"), TRAINED, ids=lambda value: value if isinstance(value, str) else "")
def test_every_recipe_that_is_advised_passes_a_dry_run(
    known: dict[str, Any], use: str, weights: str, tmp_path: Path, paid: str
) -> None:
    full = {"full_fits": True, "parameters": 10_000} if weights == "none" else {}
    there = case(**{**known, **full})
    decision = decide(there)
    assert decision.use == use
    assert decision.weights == weights
    values = recipe_for(decision, there, ground(tmp_path, *KINDS, rewards=(paid,)))
    file = tmp_path / "advice.yaml"
    file.write_text(to_yaml(values, ("a test",)), encoding="utf-8")
    recipe = load_recipe(file)
    preview(recipe, Silent())
    assert recipe.stages[-1].objective["use"] == ("reward" if use == "best_of_n" else use)


def test_a_recipe_over_four_bits_is_written_where_nothing_else_fits_and_passes_a_dry_run(tmp_path: Path) -> None:
    there = case(comparisons=3000, lora_fits=False)
    recipe = recipe_from(recipe_for(decide(there), there, ground(tmp_path, *KINDS)))
    preview(recipe, Silent())
    assert {stage.adapter.base for stage in recipe.stages if stage.adapter is not None} == {"nf4"}


@pytest.mark.parametrize(
    ("known", "kinds"),
    [
        ({"demonstrations": 60, "examples": 60}, ("demonstration",)),
        ({"comparisons": 60, "examples": 60}, ("comparison",)),
        ({"judgements": 60, "classes": 2, "examples": 30}, ("judgement",)),
    ],
)
def test_what_is_advised_for_one_file_runs_to_its_end(
    known: dict[str, Any], kinds: tuple[ExampleKind, ...], tmp_path: Path
) -> None:
    there = case(**known, full_fits=True)
    recipe = recipe_from(recipe_for(decide(there), there, ground(tmp_path, *kinds)))
    final = run(recipe, tmp_path / "run", Silent())
    assert (final / "adapter_model.safetensors").is_file()
    assert [stage.objective["use"] for stage in recipe.stages][:1] == ["sft"]


def test_a_tuned_model_starts_where_a_base_model_first_learns_to_answer(tmp_path: Path) -> None:
    on = ground(tmp_path, "comparison")
    base, tuned = (case(comparisons=60, tuned=tuned) for tuned in (False, True))
    assert [stage["name"] for stage in recipe_for(decide(base), base, on)["stages"]] == ["sft", "dpo"]
    alone = recipe_for(decide(tuned), tuned, on)
    assert "stages" not in alone
    assert alone["optim"]["lr"] == pytest.approx(5e-7 * 10 / 2)


def test_demonstrations_teach_answering_where_there_are_some(tmp_path: Path) -> None:
    there = case(comparisons=60, demonstrations=40)
    stages = recipe_for(decide(there), there, ground(tmp_path, "demonstration", "comparison"))["stages"]
    assert [Path(stage["data"]["path"]).stem for stage in stages] == ["demonstrations", "comparisons"]


def test_more_rows_make_larger_batches_and_fewer_passes(tmp_path: Path) -> None:
    there = case(demonstrations=60)
    seen = []
    for count in (60, 1_200, 8_000):
        recipe = recipe_for(decide(there), there, ground(tmp_path, "demonstration", count=count))
        seen.append((recipe["batch"]["examples"], recipe["optim"]["epochs"]))
    assert seen == [(8, 3), (32, 2), (64, 1)]


def test_what_learns_from_its_own_answers_needs_something_that_scores_them(tmp_path: Path) -> None:
    there = case(verifier=True, demonstrations=60)
    with pytest.raises(InputError, match=r"grpo learns from answers of its own.*--verifier FILE\.py:FN"):
        recipe_for(decide(there), there, ground(tmp_path, "demonstration"))


@pytest.mark.parametrize("use", RATES)
def test_rates_are_the_objectives_own(use: str) -> None:
    assert RATES[use] == find(use).learning_rate
    assert LORA_RATE == stage.LORA_RATE
