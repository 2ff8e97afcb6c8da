"""Recipes: what a stage takes from the top, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from truing.core.errors import RecipeError
from truing.objectives.registry import create
from truing.recipe.load import dump, load_recipe

CHAIN = """\
model: somewhere/model
template: plain
adapter: {use: lora, rank: 4}
output: runs/chain
seed: 7
data: {max_length: 64}
stages:
  - name: first
    objective: {use: sft}
    data: {path: a.json}
    optim: {lr: 2e-4, max_steps: 60}
  - objective: {use: dpo, beta: 0.1}
    data: {path: b.json, max_length: 32}
    optim: {lr: 5e-6, max_steps: 6}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_stage_takes_from_the_top_what_it_does_not_say(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, CHAIN))
    first, second = recipe.stages
    assert (first.name, second.name) == ("first", "dpo")
    assert (first.data.max_length, second.data.max_length) == (64, 32)
    assert first.optim.lr == 2e-4, "YAML 1.1 would read 2e-4 as text"
    assert first.seed == second.seed == 7
    assert first.adapter is not None
    assert first.adapter.rank == 4
    assert first.model == "somewhere/model"
    assert second.model is None, "a later stage starts from the one before it"


def test_a_resolved_recipe_reads_back_to_itself(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, CHAIN))
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe
    full = load_recipe(write(tmp_path, CHAIN), ["adapter=none"])
    again.write_text(dump(full), encoding="utf-8")
    assert full.stages[0].adapter is None
    assert load_recipe(again) == full


def test_paths_beside_the_recipe_are_found_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(write(tmp_path, CHAIN))
    assert recipe.stages[0].data.path == str(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [(["stages.first.optim.lr=1e-3"], 1e-3), (["stages.0.optim.lr=0.5"], 0.5)],
)
def test_overrides_reach_a_stage_by_name_or_number(tmp_path: Path, overrides: list[str], lr: float) -> None:
    recipe = load_recipe(write(tmp_path, CHAIN), overrides)
    assert recipe.stages[0].optim.lr == lr
    assert recipe.stages[1].optim.lr == 5e-6


def test_an_override_that_every_stage_overrides_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no effect.*stages\.first\.optim\.lr"):
        load_recipe(write(tmp_path, CHAIN), ["optim.lr=1"])
    assert load_recipe(write(tmp_path, CHAIN), ["seed=3"]).stages[1].seed == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lr: 2e-4", "lrr: 2e-4"), r"recipe\.yaml:11: 'optim\.lrr' is not a known key; did you mean 'lr'"),
        (("seed: 7", "sead: 7"), r"recipe\.yaml:5: 'sead' is not a known key; did you mean 'seed'"),
        (("seed: 7", "learning_rate: 7"), r"recipe\.yaml:5: .*here it is optim\.lr"),
        (("lr: 2e-4", "lr: fast"), r"recipe\.yaml:11: 'optim\.lr': .*number.*'fast'"),
        (("lr: 2e-4", "lr: -1"), r"recipe\.yaml:11: 'optim\.lr': .*greater than 0"),
        (("rank: 4", "rank: 0"), r"recipe\.yaml:3: 'adapter\.rank'"),
        (("data: {path: a.json}\n", "\n"), r"recipe\.yaml:.*'data\.path' is missing"),
        (("model: somewhere/model\n", ""), r"'model' is missing"),
        (("{use: sft}", "{beta: 1}"), r"recipe\.yaml:9: 'objective\.use' is missing"),
        (("seed: 7", "seed: 7\nseed: 8"), r"recipe\.yaml:6: 'seed' is given twice"),
        (("name: first", "name: dpo"), r"two stages are named 'dpo'"),
        (("name: first", "name: ../up"), r"'name': a stage's name becomes a folder"),
        (("{use: sft}", "{use: sft"), r"not valid YAML: line \d+"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in CHAIN
    with pytest.raises(RecipeError, match=message) as told:
        load_recipe(write(tmp_path, CHAIN.replace(*change)))
    assert told.value.exit_code == 2


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, CHAIN)
    with pytest.raises(RecipeError, match=r"no such recipe \(that folder has recipe\.yaml\)"):
        load_recipe(tmp_path / "recipie.yaml")


def test_another_objective_does_not_inherit_fields(tmp_path: Path) -> None:
    text = CHAIN.replace("seed: 7", "objective: {use: dpo, beta: 0.3}").replace("{use: dpo, beta: 0.1}", "{use: dpo}")
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.stages[0].objective == {"use": "sft"}
    assert recipe.stages[1].objective == {"use": "dpo", "beta": 0.3}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("objectiv.beta=1", "--set objectiv.beta=1: 'objectiv' is not a known key"),
        ("stages.dpo.optm.lr=1", "--set stages.dpo.optm.lr=1: 'optm' is not a known key"),
        ("stages.dpo.optim.lr=x", "--set stages.dpo.optim.lr=x: 'optim.lr'"),
    ],
)
def test_a_wrong_override_is_named_instead_of_a_line(tmp_path: Path, override: str, complaint: str) -> None:
    file = tmp_path / "recipe.yaml"
    stages = "[{objective: {use: sft}, data: {path: a}}, {objective: {use: dpo}, data: {path: b}}]"
    file.write_text(f"model: m\noptim: {{lr: 1e-5}}\nstages: {stages}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override])
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda f: f.stem)
def test_examples_are_recipes_of_at_most_thirty_lines(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.stages
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 30
    for stage in recipe.stages:
        create(stage.objective)
        for reward in stage.rollout.rewards:
            assert reward.uses[0].startswith(str(file.parent))
