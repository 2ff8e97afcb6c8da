"""Loss and KL on general text around a stage: true, whatever is trained, and the same when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from truing.build import forgetting
from truing.build.chain import resume, run
from truing.core.errors import DataError
from truing.recipe.load import load_recipe, recipe_from
from truing.training.progress import Silent
from truing.training.trainer import Trainer
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
TEXTS = 12
LENGTH = 20
REWARD = """\
def words(prompts, completions, **columns):
    return [len(set(text.split())) / 10 for text in completions]
"""
KEYS = ("forgetting/loss_before", "forgetting/loss_after", "forgetting/kl")

either_way = pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=30, demonstrations=40, pairs=40))
    write_base_model(folder / "model")
    return folder / "model", files


def values(world: tuple[Path, WorldFiles], adapter: Any, **top: Any) -> dict[str, Any]:
    model, files = world
    return {
        "model": str(model),
        "adapter": adapter,
        "samples": {"count": 0},
        "batch": {"examples": 8, "micro_tokens": 64},
        "checkpoint": {"every": 2},
        "precision": {"matmul": "highest"},
        "forgetting": {"path": str(files.corpus), "limit": TEXTS, "max_length": LENGTH},
        "optim": {"lr": 2e-3, "max_steps": 5},
        "stages": [
            {"objective": {"use": "sft"}, "data": {"path": str(files.demonstrations), "max_length": 48}},
            {"objective": {"use": "dpo"}, "data": {"path": str(files.pairs), "max_length": 48}},
        ],
        **top,
    }


def distributions(module: PreTrainedModel, world: tuple[Path, WorldFiles]) -> tuple[Tensor, Tensor]:
    """Log-probs of each token of the texts and of all tokens in its place, by transformers alone: float64."""
    tokenizer = AutoTokenizer.from_pretrained(world[0])
    lines = world[1].corpus.read_text(encoding="utf-8").splitlines()[:TEXTS]
    own, whole = [], []
    for line in lines:
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        row = torch.tensor([first, *ids, tokenizer.eos_token_id][:LENGTH])
        with torch.no_grad():
            logprobs = torch.log_softmax(module(row[None]).logits[0, :-1].double(), -1)
        own.append(logprobs.gather(1, row[1:, None])[:, 0])
        whole.append(logprobs)
    return torch.cat(own), torch.cat(whole)


@either_way
def test_each_stage_is_measured_against_its_own_start(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    reporter = Listening()
    run(recipe_from(values(world, adapter)), tmp_path / "run", reporter)
    modules = [AutoModelForCausalLM.from_pretrained(world[0])]
    for stage in ("1-sft", "2-dpo"):
        final = tmp_path / "run" / stage / "final"
        if adapter == "none":
            modules.append(AutoModelForCausalLM.from_pretrained(final))
        else:
            modules.append(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world[0]), final))
    seen = [distributions(module, world) for module in modules]
    for stage, (own_before, before), (own_after, after) in zip(("1-sft", "2-dpo"), seen, seen[1:], strict=False):
        rows = metrics(tmp_path / "run" / stage)
        assert not any(key in row for row in rows[:-1] for key in KEYS)
        divergence = float((before.exp() * (before - after)).sum(-1).mean())
        assert divergence > 1e-4, "the stage moved the policy"
        wanted = (-float(own_before.mean()), -float(own_after.mean()), divergence)
        assert [rows[-1][key] for key in KEYS] == pytest.approx(wanted, abs=1e-5)
        told = json.loads((tmp_path / "run" / stage / "forgetting.json").read_text(encoding="utf-8"))
        assert [told[key.removeprefix("forgetting/")] for key in KEYS] == [rows[-1][key] for key in KEYS]
        assert told["texts"] == TEXTS
        assert told["tokens"] == told["kl_positions"] == len(own_before)
        sentence = f"general text: loss {wanted[0]:.3f} -> {wanted[1]:.3f} nats a token"
        assert sum(said.startswith(sentence) for said in reporter.said) == 1


def test_a_run_that_its_kl_budget_ends_is_measured_too(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    stage = {
        "objective": {"use": "grpo", "kl_budget": 0.3, "kl_coef": 0},
        "data": {"path": str(world[1].prompts), "max_length": 24, "limit": 8},
        "rollout": {"rewards": [f"{tmp_path}/rewards.py:words"], "max_new_tokens": 6, "epochs": 1},
        "optim": {"lr": 2e-2, "max_steps": 60},
    }
    recipe = {**values(world, LORA, stages=[stage]), "samples": {"count": 1, "every": 50, "max_new_tokens": 2}}
    final = run(recipe_from(recipe), tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run")
    assert 0 < len(rows) < 60, "the budget has ended it"
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert not any(key in row for row in rows[:-1] for key in KEYS)
    base = AutoModelForCausalLM.from_pretrained(world[0])
    before = -float(distributions(base, world)[0].mean())
    after = -float(distributions(PeftModel.from_pretrained(base, final), world)[0].mean())
    assert [rows[-1][key] for key in KEYS[:2]] == pytest.approx([before, after], abs=1e-5)


@either_way
def test_a_run_cut_and_resumed_measures_the_same(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = forgetting.Forgetting._look_at_start

    def counted(self: forgetting.Forgetting) -> float:
        nonlocal looks
        looks += 1
        return real(self)

    monkeypatch.setattr(forgetting.Forgetting, "_look_at_start", counted)
    recipe = values(world, adapter)
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="dpo", step=3, stage="2-dpo")
    assert looks == 4, "two stages of two runs; the resumed one has what it found before"
    straight, cut = (metrics(tmp_path / which / "2-dpo")[-1] for which in ("straight", "cut"))
    assert [straight[key] for key in KEYS] == [cut[key] for key in KEYS]
    told = [
        (tmp_path / which / "2-dpo" / "forgetting.json").read_text(encoding="utf-8") for which in ("straight", "cut")
    ]
    assert told[0] == told[1]


@either_way
def test_measuring_does_not_change_the_run(world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any) -> None:
    weights = []
    for name, section in (("with", values(world, adapter)["forgetting"]), ("without", {})):
        final = run(recipe_from(values(world, adapter, forgetting=section)), tmp_path / name, Silent())
        weights.append(load_file(next(final.glob("*model.safetensors"))))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert not list((tmp_path / "without").rglob("forgetting.json"))


def test_a_large_vocabulary_is_compared_at_evenly_spaced_tokens(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "KEPT_BYTES", 4 * 10 * AutoTokenizer.from_pretrained(world[0]).vocab_size)
    recipe = values(world, LORA)
    recipe["stages"] = recipe["stages"][:1]
    run(recipe_from(recipe), tmp_path / "run", Silent())
    folder = tmp_path / "run"
    told = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    kept = load_file(folder / "reference" / "general_text.safetensors")["logprobs"]
    assert len(kept) == told["kl_positions"] <= 10 < told["tokens"]
    assert 0 < told["kl_standard_error"] < told["kl"]


def test_a_text_that_changed_while_a_run_lay_still_is_looked_at_anew(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept of another text says nothing about this one; a run that resumes has its start in memory again."""
    text = tmp_path / "general.txt"
    recipe = values(world, "none", forgetting={"path": str(text)})
    recipe["stages"] = recipe["stages"][:1]
    real = Trainer._update

    def dies(self: Trainer, prepared: Any, total: int) -> Any:
        if prepared.index == 3:
            raise KeyboardInterrupt
        return real(self, prepared, total)

    text.write_text("a cat sat\non it\n\nthe dog\n", encoding="utf-8")
    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_from(recipe), tmp_path / "cut", Silent())
    monkeypatch.setattr(Trainer, "_update", real)
    text.write_text("the dog\n", encoding="utf-8")
    resume(tmp_path / "cut", Silent())
    run(recipe_from(recipe), tmp_path / "straight", Silent())
    cut, straight = (json.loads((tmp_path / n / "forgetting.json").read_text("utf-8")) for n in ("cut", "straight"))
    assert cut["texts"] == 1
    assert cut == straight


def test_a_reward_stage_measures_nothing_and_says_so(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = values(world, LORA)
    recipe["stages"] = [{**recipe["stages"][1], "objective": {"use": "reward"}}]
    reporter = Listening()
    run(recipe_from(recipe), tmp_path / "run", reporter)
    assert not any(key in metrics(tmp_path / "run")[-1] for key in KEYS)
    assert [said for said in reporter.said if "general text" in said] == [
        "  general text: not measured, for a reward model predicts no text"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"forgetting\.path: .*missing\.txt: no such file"),
        ("empty.txt", "\n\n", r"empty\.txt: the file is empty"),
        ("bare.jsonl", '{"words": "x"}\n', r"bare\.jsonl: no known format has the columns words"),
        ("prompts.jsonl", '{"prompt": "x"}\n', r"prompts\.jsonl: rows are prompts"),
        ("rows.jsonl", '{"text": "x"}\n{"text": ""}\n', r"rows\.jsonl:2: "),
    ],
)
def test_a_text_that_cannot_be_read_is_found_at_once(
    world: tuple[Path, WorldFiles], tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    recipe = values(world, LORA)
    recipe["stages"][1]["forgetting"] = {"path": str(tmp_path / name)}
    with pytest.raises(DataError, match=message) as told:
        run(recipe_from(recipe), tmp_path / "run", Silent())
    assert told.value.exit_code == 2
    assert "without forgetting.path nothing is measured" in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_text_beside_the_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("once\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: m\nobjective: {use: sft}\ndata: {path: a.json}\nforgetting: {path: general.txt}\n", encoding="utf-8"
    )
    assert load_recipe(recipe).stages[0].forgetting.path == str(tmp_path / "general.txt")
