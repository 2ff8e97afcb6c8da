"""Model cards: metadata that the hub's classes read, code that runs, the run's figures, and no foreign structure."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from tests.build.runs import metrics
from truing.build import stage as build_stage
from truing.build.card_facts import CardFacts, gather, public_name
from truing.build.chain import run
from truing.build.loading_code import FOLDER
from truing.build.markdown import block, code
from truing.build.model_card import model_card
from truing.recipe.load import load_recipe, recipe_from
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
HEADINGS = [
    "How it was trained",
    "Data",
    "Stages before this one",
    "Results",
    "How to load it",
    "Chat template and end of an answer",
    "Limits",
    "Versions",
    "Recipe",
]
HOSTILE = "a`b ``| <script>x</script> # ---.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=30, demonstrations=30, pairs=40))
    write_base_model(folder / "model")
    return folder / "model", files


def chain(world: tuple[Path, WorldFiles], last: str, adapter: Any, **data: Any) -> dict[str, Any]:
    short = {"lr": 1e-3, "max_steps": 2}
    pairs = {"path": str(world[1].pairs), "max_length": 48, "holdout": 0.2, **data}
    return {
        "model": str(world[0]),
        "adapter": adapter,
        "template": "chatml" if last == "reward" else "plain",
        "samples": {"count": 0},
        "batch": {"examples": 4},
        "precision": {"matmul": "highest"},
        "stages": [
            {
                "objective": {"use": "sft"},
                "data": {"path": str(world[1].demonstrations), "max_length": 48},
                "optim": short,
            },
            {"objective": {"use": last}, "data": pairs, "optim": short},
        ],
    }


@pytest.fixture
def facts(world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CardFacts:
    """Those of a DPO stage after SFT, on a file with a name that would like to be more than a name."""
    seen: list[CardFacts] = []

    def remembered(ready: Any, directory: Any) -> CardFacts:
        seen.append(gather(ready, directory))
        return seen[-1]

    monkeypatch.setattr(build_stage, "gather", remembered)
    file = tmp_path / HOSTILE.replace("/", "∕")
    shutil.copy(world[1].pairs, file)
    run(recipe_from(chain(world, "dpo", LORA, path=str(file))), tmp_path / "run", Silent())
    return seen[-1]


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
@pytest.mark.parametrize("last", ["dpo", "reward"])
def test_every_result_has_a_card_whose_metadata_hold_and_whose_code_runs(
    world: tuple[Path, WorldFiles], tmp_path: Path, last: str, adapter: Any
) -> None:
    final = run(recipe_from(chain(world, last, adapter)), tmp_path / "run", Silent())
    card = ModelCard.load(final / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert card.data.library_name == ("transformers" if adapter == "none" else "peft")
    assert card.data.pipeline_tag == ("text-classification" if last == "reward" else "text-generation")
    assert card.data.tags is not None
    assert {"truing", last} <= set(card.data.tags)
    assert card.data.base_model is None, "a folder of this machine is no id of the hub"
    assert card.content == (tmp_path / "run" / f"2-{last}" / "final" / "README.md").read_text(encoding="utf-8")
    assert ModelCard.load(tmp_path / "run" / "1-sft" / "final" / "README.md").data.tags[1] == "sft"
    program = card.content.split("```python\n")[1].split("```")[0].replace(FOLDER, str(final))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.no_grad():
        exec(compile(program, "README.md", "exec"), {})
    assert last != "reward" or math.isfinite(float(printed.getvalue()))


def test_the_figures_are_those_of_the_run(facts: CardFacts, tmp_path: Path) -> None:
    card = model_card(facts)
    last = metrics(tmp_path / "run" / "2-dpo")[-1]
    assert f"| `rewards/margins` | {last['eval_rewards/margins']:.4g} |" in card
    assert f"on {facts.evaluated_rows} held-out rows" in card
    assert facts.data["files"][0]["sha256"] in card
    assert "1. `sft`, 2 steps on `demonstrations.json" in card, "the stage before it is told of"
    assert "| LoRA | rank 4, alpha 8, dropout 0 |" in card


def test_an_adapter_names_the_model_that_it_is_for_and_a_model_the_first_of_its_line(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    run(recipe_from(chain(world, "dpo", "none")), tmp_path / "full", Silent())
    whole = (tmp_path / "full" / "final" / "README.md").read_text(encoding="utf-8")
    over = {**chain(world, "dpo", LORA)["stages"][1], "samples": {"count": 0}, "template": "plain", "adapter": LORA}
    run(recipe_from({"model": str(tmp_path / "full" / "2-dpo" / "final"), **over}), tmp_path / "run", Silent())
    adapter = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert "# `model` trained with" in whole
    assert "A LoRA adapter, of `2-dpo/final`" in adapter
    assert "\n2. `dpo`, 2 steps on `" in adapter


def test_without_held_out_rows_the_card_says_so(facts: CardFacts) -> None:
    rows = tuple({k: v for k, v in row.items() if not k.startswith("eval_")} for row in facts.metrics)
    card = model_card(replace(facts, metrics=rows))
    assert "Nothing was measured on held-out rows." in card
    assert "No figure here tells how it does on rows that it was not trained on." in card


def test_hub_ids_become_metadata_and_folders_do_not(facts: CardFacts) -> None:
    data = facts.stage.data.model_copy(update={"path": ("org/pairs:train", str(Path.cwd() / "local.json"))})
    named = replace(facts, base="org/base-1.5B", stage=facts.stage.model_copy(update={"data": data}))
    found = ModelCard(model_card(named)).data
    assert (found.base_model, found.datasets) == ("org/base-1.5B", ["org/pairs"])
    assert ModelCard(model_card(replace(named, merged=True))).data.base_model is None


def test_no_text_of_others_becomes_structure(facts: CardFacts) -> None:
    hostile = 'x\n---\nlicense: "mit"\n---\n# Heading\n<script>alert(1)</script>\n```\n| a |'
    environment = {**facts.environment, "device": hostile}
    card = model_card(replace(facts, base=hostile, end_tokens=(hostile, "`", "|"), environment=environment))
    assert ModelCard(card).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    inner = [part for token in tokens for part in token.children or ()]
    assert not [token for token in (*tokens, *inner) if token.type.startswith("html")]
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[1:] == HEADINGS
    rows = [line for line in card.splitlines() if line.startswith("|") and "<script>" in line]
    assert rows
    for row in rows:
        columns = 4 if facts.data["files"][0]["sha256"] in row else 2
        assert len(re.findall(r"(?<!\\)\|", row)) == columns + 1, "a bar in a name opens no column"


def test_the_card_names_no_folder_of_this_machine(facts: CardFacts, tmp_path: Path) -> None:
    assert str(tmp_path) not in model_card(facts)
    assert str(Path(facts.base).parent) not in model_card(facts)


def test_the_recipe_of_the_card_repeats_the_stage(facts: CardFacts, tmp_path: Path) -> None:
    text = model_card(facts).split("yaml\n")[1].rsplit("\n```", 1)[0].rstrip("`")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    values = yaml.safe_load(text)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for path in (*facts.stage.data.paths, str(facts.stage.model)):
        (folder / Path(path).name).symlink_to(path)
    (folder / "1-sft").symlink_to(tmp_path / "run" / "1-sft")
    read = load_recipe(folder / "recipe.yaml").stages[0]
    assert read.model_copy(update={"model": None, "data": None}) == facts.stage.model_copy(
        update={"model": None, "data": None}
    )
    assert Path(str(read.model)).samefile(str(facts.stage.model))


@pytest.mark.parametrize("text", ["a`b", "``", "`", "", "a|b", "<b>", "x" * 5000, "a\nb\r\n# c"])
def test_code_is_one_line_closed_by_its_own_fence(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    assert "\n" not in shown
    inner = shown[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner)
    assert len(shown) < 400


def test_a_block_cannot_be_closed_from_within() -> None:
    assert block("a\n````\nb", "text") == "`````text\na\n````\nb\n`````"


def test_public_names_leave_folders_out(tmp_path: Path) -> None:
    (tmp_path / "1-sft" / "final").mkdir(parents=True)
    (tmp_path / "rewards.py").touch()
    assert public_name(str(tmp_path / "1-sft" / "final")) == "1-sft/final"
    assert public_name(f"{tmp_path}/rewards.py:fn") == "rewards.py:fn"
    assert public_name("/not/a/file") == "/not/a/file"
    assert public_name("org/name") == "org/name"
    assert public_name("x" * 5000) == "x" * 5000
