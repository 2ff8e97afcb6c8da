"""Methods that learn from their own completions, end to end on a tiny model: PPO over one base and over four, and the
group methods; resumed in the middle of a rollout; and what is wrong with rewards, said before anything is trained.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.build.runs import assert_a_cut_changes_nothing, metrics
from truing.build.chain import run
from truing.core.errors import InputError, NothingToTrain
from truing.recipe.load import load_recipe, recipe_from
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

LORA = {"use": "lora", "rank": 4}
REWARDS = """
import time
def words(prompts, completions, **columns):
    return [len(set(text.split())) / 10 for text in completions]
def equal(prompts, completions, **columns):
    return [1.0] * len(completions)
def short(prompts, completions, **columns):
    return [1.0] * (len(completions) - 1)
def none(prompts, completions, **columns):
    return [1.0, None][: len(completions)]
def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)
def text(prompts, completions, **columns):
    return "good"
def raises(prompts, completions, **columns):
    return [columns["answer"][0] for _ in completions]
def hangs(prompts, completions, **columns):
    while True: time.sleep(1)
def prints(prompts, completions, **columns):
    print("scoring", len(completions))
    return words(prompts, completions)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=60))
    write_base_model(folder / "model")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return folder / "model", files


def stage(world: tuple[Path, WorldFiles], use: str, **more: Any) -> dict[str, Any]:
    """One rollout stage; its reward counts different words."""
    return {
        "objective": {"use": use},
        "data": {"path": str(world[1].prompts), "max_length": 24, "limit": 12},
        "rollout": {"rewards": [f"{world[0].parent / 'rewards.py'}:words"], "max_new_tokens": 8},
        "optim": {"lr": 3e-3, "max_steps": 6},
        **more,
    }


def whole(world: tuple[Path, WorldFiles], adapter: Any = LORA, **more: Any) -> dict[str, Any]:
    return {
        "model": str(world[0]),
        "adapter": adapter,
        "samples": {"count": 0},
        "batch": {"examples": 4, "micro_tokens": 128},
        "precision": {"matmul": "highest"},
        "checkpoint": {"every": 2},
        **more,
    }


def rlhf(world: tuple[Path, WorldFiles], adapter: Any = LORA, **rollout: Any) -> dict[str, Any]:
    """SFT → reward → PPO."""
    files = world[1]
    settings = {"max_new_tokens": 8, "mini_batches": 2, "epochs": 2, "normalize_on": 8, **rollout}
    return whole(
        world,
        adapter,
        stages=[
            {
                "objective": {"use": "sft"},
                "data": {"path": str(files.demonstrations), "max_length": 48},
                "optim": {"lr": 3e-3, "max_steps": 3},
            },
            {
                "objective": {"use": "reward"},
                "data": {"path": str(files.pairs), "max_length": 48},
                "optim": {"lr": 3e-3, "max_steps": 3},
            },
            stage(world, "ppo", rollout=settings, data={"path": str(files.prompts), "max_length": 24, "limit": 20}),
        ],
    )


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_rlhf_runs_from_one_recipe_and_starts_at_ratio_one(
    world: tuple[Path, WorldFiles], tmp_path: Path, adapter: Any
) -> None:
    final = run(recipe_from(rlhf(world, adapter)), tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run" / "3-ppo")
    assert len(rows) == 6
    first = rows[0]
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/clipfrac"] == 0.0
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["objective/rlhf_reward"] == pytest.approx(
        first["objective/scores"] - first["objective/kl_coef"] * first["objective/kl"], abs=1e-6
    )
    assert {"loss/policy", "loss/value", "val/explained_variance", "objective/entropy"} <= first.keys()
    assert [row["objective/scores"] for row in rows[:4]] == [first["objective/scores"]] * 4, "one rollout, four steps"
    assert rows[4]["objective/scores"] != first["objective/scores"]
    assert rows[4]["objective/kl"] != 0.0, "the policy has moved"
    tokens = torch.tensor([[1, 5, 9]])
    base = str(world[0])
    if adapter == "none":
        module = AutoModelForCausalLM.from_pretrained(final)
    else:
        module = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(final))
    assert module(input_ids=tokens).logits.isfinite().all()


def test_four_roles_over_one_base_equal_four_models(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    for name, share in (("one", True), ("four", False)):
        run(recipe_from(rlhf(world, share_base=share)), tmp_path / name, Silent())
    one, four = (metrics(tmp_path / name / "3-ppo") for name in ("one", "four"))
    for a, b in zip(one, four, strict=True):
        for key in ("objective/scores", "objective/kl", "val/mean", "loss/policy", "loss/value", "rewards/2-reward"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key


@pytest.mark.parametrize("use", ["ppo", "grpo", "rloo", "reinforce", "online_dpo", "best_of_n"])
def test_a_step_is_the_same_in_any_micro_batch(world: tuple[Path, WorldFiles], tmp_path: Path, use: str) -> None:
    for name, size in (("one", 1), ("some", 40), ("all", 4096)):
        recipe = whole(world, **stage(world, use), batch={"examples": 4, "micro_tokens": size})
        run(recipe_from(recipe), tmp_path / name, Silent())
    one, some, together = (metrics(tmp_path / name) for name in ("one", "some", "all"))
    for row in range(2):
        for other in (one, some):
            assert other[row]["loss"] == pytest.approx(together[row]["loss"], abs=1e-5)
            assert other[row]["grad_norm"] == pytest.approx(together[row]["grad_norm"], rel=1e-3)
            assert other[row]["objective/scores"] == together[row]["objective/scores"]


@pytest.mark.parametrize("use", ["ppo", "grpo", "rloo", "online_dpo", "best_of_n"])
def test_a_run_cut_in_a_rollout_ends_with_the_same_bits(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    rollout = {**stage(world, use)["rollout"], "epochs": 2, "mini_batches": 2}
    if use == "ppo":
        rollout["rewards"] = [{"use": rollout["rewards"][0], "normalize": True}]
    recipe = whole(world, **stage(world, use, rollout=rollout, objective=_steered(use)))
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective=use, step=3, stage=".")


def _steered(use: str) -> dict[str, Any]:
    """With a coefficient that changes from rollout to rollout, where there is one."""
    adaptive = {"kl_target": 0.1, "kl_horizon": 50} if use in ("ppo", "grpo", "rloo") else {}
    return {"use": use, **adaptive}


def test_full_weights_resume_in_a_rollout_too(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = whole(world, "none", **stage(world, "ppo"))
    assert_a_cut_changes_nothing(recipe, tmp_path, monkeypatch, objective="ppo", step=3, stage=".")


def test_a_chain_cut_in_its_ppo_stage_ends_with_the_same_bits(
    world: tuple[Path, WorldFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_a_cut_changes_nothing(rlhf(world), tmp_path, monkeypatch, objective="ppo", step=3, stage="3-ppo")


def test_the_critic_warms_up_while_the_policy_stays(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = whole(world, **stage(world, "ppo", objective={"use": "ppo", "value_warmup": 4}))
    run(recipe_from(recipe), tmp_path / "run", Silent())
    rows = metrics(tmp_path / "run")
    assert all("loss/policy" not in row for row in rows[:4])
    assert "loss/policy" in rows[4]
    assert rows[4]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[3]["loss/value"] < rows[0]["loss/value"]


class Warned(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_training_ends_at_the_kl_budget_with_a_result(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    objective = {"use": "grpo", "kl_budget": 0.5, "kl_coef": 0}
    recipe = whole(world, **stage(world, "grpo", objective=objective, optim={"lr": 2e-2, "max_steps": 60}))
    listening = Warned()
    final = run(recipe_from(recipe), tmp_path / "run", listening)
    rows = metrics(tmp_path / "run")
    assert 1 < len(rows) < 60
    assert all(row["objective/kl"] <= 0.5 for row in rows)
    assert any("kl_budget 0.5" in text for text in listening.warned)
    assert (final / "adapter_model.safetensors").is_file()


def test_a_completion_cut_short_costs_the_penalty(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    scores = []
    for penalty in (0.0, 2.0):
        objective = {"use": "ppo", "missing_end_penalty": penalty}
        recipe = whole(world, **stage(world, "ppo", objective=objective, optim={"lr": 1e-4, "max_steps": 1}))
        run(recipe_from(recipe), tmp_path / str(penalty), Silent())
        (row,) = metrics(tmp_path / str(penalty))
        scores.append(row["objective/scores"])
    assert scores[0] - scores[1] == pytest.approx(2.0 * (1 - row["completions/ended"]), abs=1e-5)
    assert row["completions/ended"] < 1


def test_rewards_add_up_with_their_weights(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    file = world[0].parent / "rewards.py"
    rewards = [{"use": f"{file}:words", "weight": 2.0}, {"use": f"{file}:prints", "weight": -0.5}]
    rollout = {"rewards": rewards, "max_new_tokens": 8}
    recipe = whole(world, **stage(world, "grpo", rollout=rollout, optim={"lr": 1e-4, "max_steps": 1}))
    run(recipe_from(recipe), tmp_path / "run", Silent())
    (row,) = metrics(tmp_path / "run")
    expected = 2.0 * row["rewards/words"] - 0.5 * row["rewards/prints"]
    assert row["objective/scores"] == pytest.approx(expected, abs=1e-6)


def test_held_out_prompts_are_scored(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    data = {"path": str(world[1].prompts), "max_length": 24, "limit": 20, "holdout": 0.3}
    run(recipe_from(whole(world, **stage(world, "grpo", data=data))), tmp_path / "run", Silent())
    assert 0.0 <= metrics(tmp_path / "run")[-1]["eval_scores"] <= 1.0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("short", "returned 1 numbers for 2 completions"),
        ("none", "returned None for completion 1"),
        ("nan", "returned nan for completion 0"),
        ("text", "returned a str"),
        ("raises", r"rewards.py:16: KeyError: 'answer'"),
        ("absent", "no function 'absent'"),
    ],
)
def test_a_faulty_reward_is_refused_before_training(
    world: tuple[Path, WorldFiles], tmp_path: Path, function: str, expected: str
) -> None:
    rollout = {"rewards": [f"{world[0].parent / 'rewards.py'}:{function}"], "max_new_tokens": 8}
    with pytest.raises(InputError, match=expected):
        run(recipe_from(whole(world, **stage(world, "grpo", rollout=rollout))), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_reward_that_hangs_is_ended(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    rollout = {"rewards": [f"{world[0].parent / 'rewards.py'}:hangs"], "reward_timeout": 2.0}
    started = time.monotonic()
    with pytest.raises(InputError, match=r"did not return within 2 s.*reward_timeout"):
        run(recipe_from(whole(world, **stage(world, "grpo", rollout=rollout))), tmp_path / "run", Silent())
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"rollout": {}}, "needs a reward"),
        ({"rollout": {"rewards": ["runs/absent"]}}, "no run or model folder 'runs/absent'"),
        ({"rollout": {"rewards": ["./absent.py:fn"]}}, "no file './absent.py'"),
        ({"rollout": {"rewards": ["{rewards}:words"], "group_size": 1}}, "rollout.group_size is 1"),
        ({"rollout": {"rewards": ["{rewards}:words"], "top_p": 0.9}}, "refused while training"),
        ({"rollout": {"rewards": ["{rewards}:words"], "max_new_tokens": 500}}, "more than the .* positions"),
    ],
)
def test_what_a_rollout_stage_lacks_is_said_first(
    world: tuple[Path, WorldFiles], tmp_path: Path, more: dict[str, Any], expected: str
) -> None:
    file = str(world[0].parent / "rewards.py")
    text = json.dumps(whole(world, **stage(world, "grpo", **more))).replace("{rewards}", file)
    with pytest.raises(InputError, match=expected):
        run(recipe_from(json.loads(text)), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_rollout_section_that_nothing_would_read_is_refused(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    recipe = whole(world, **{**stage(world, "sft"), "data": {"path": str(world[1].demonstrations), "max_length": 48}})
    with pytest.raises(InputError, match="learns from rows"):
        run(recipe_from(recipe), tmp_path / "run", Silent())


def test_reinforce_refuses_a_second_step_of_a_rollout(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    rollout = {**stage(world, "reinforce")["rollout"], "epochs": 2}
    with pytest.raises(InputError, match="one step only"):
        run(recipe_from(whole(world, **stage(world, "reinforce", rollout=rollout))), tmp_path / "run", Silent())


def test_rewards_that_are_all_equal_are_said_and_end_the_run(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    rollout = {"rewards": [f"{world[0].parent / 'rewards.py'}:equal"], "max_new_tokens": 4}
    listening = Warned()
    recipe = whole(world, **stage(world, "grpo", rollout=rollout, optim={"lr": 1e-3, "max_steps": 30}))
    with pytest.raises(NothingToTrain, match="scored the same"):
        run(recipe_from(recipe), tmp_path / "run", listening)
    assert any("scored the same" in text for text in listening.warned)


def test_a_reward_model_with_another_vocabulary_is_refused(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    chain = rlhf(world)
    run(recipe_from({**chain, "stages": chain["stages"][:2]}), tmp_path / "first", Silent())
    folder = tmp_path / "first" / "2-reward" / "final"
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    words = sorted(vocab, key=vocab.__getitem__)[-2:]
    vocab[words[0]], vocab[words[1]] = vocab[words[1]], vocab[words[0]]
    file.write_text(json.dumps(content), encoding="utf-8")
    rollout = {"rewards": [str(folder)], "max_new_tokens": 8}
    with pytest.raises(InputError, match="another vocabulary"):
        run(recipe_from(whole(world, **stage(world, "ppo", rollout=rollout))), tmp_path / "run", Silent())


def test_paths_of_rewards_are_found_beside_the_recipe(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    values = whole(world, **stage(world, "grpo", rollout={"rewards": ["./mine.py:words", "reward"]}))
    (tmp_path / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    rewards = load_recipe(tmp_path / "recipe.yaml").stages[0].rollout.rewards
    assert rewards[0].use == f"{tmp_path / 'mine.py'}:words"
    assert rewards[1].use == "reward", "a bare word may be an earlier stage"
    values["rollout"]["rewards"] = "./mine.py:words"
    (tmp_path / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").stages[0].rollout.rewards == rewards[:1], "one needs no list"
