"""`truing best-of-n` end to end on a tiny model: what it writes and says, from a server too, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.build.runs import metrics
from tests.rl.test_completion_server import Handler, Stub, choice, llama, vllm
from truing.build.chain import run
from truing.build.load_result import open_result
from truing.build.rewards import Judged, Seat, build_reward
from truing.cli.main import cli
from truing.core.best_of import kl_bound
from truing.core.trees import Completion, Tree
from truing.data.dataset import load
from truing.data.formats import FORMATS, detect
from truing.data.records import read
from truing.data.settings import DataSettings
from truing.models.lora.adapters import Adapters
from truing.recipe.load import recipe_from
from truing.rl import completion_server
from truing.rl.rewards import Answers
from truing.rl.settings import RewardSettings
from truing.training.progress import Silent
from truing.world.base_model import write_base_model
from truing.world.records import WorldFiles, WorldSettings, write_world

REWARDS = """
def words(prompts, completions, **columns):
    return [len(set(text.split())) / 10 for text in completions]
def short(prompts, completions, **columns):
    return [-float(len(text)) for text in completions]
def target(prompts, completions, *, label, **columns):
    return [float(value) for value in label]
def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)
"""
LORA = {"use": "lora", "rank": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WorldFiles]:
    folder = tmp_path_factory.mktemp("world")
    files = write_world(folder, WorldSettings(corpus=50, demonstrations=40, pairs=60))
    write_base_model(folder / "model")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return folder / "model", files


def train(world: tuple[Path, WorldFiles], output: Path, **stage: Any) -> Path:
    """A run of a few steps; SFT on the world's demonstrations unless said otherwise."""
    values = {
        "model": str(world[0]),
        "adapter": LORA,
        "objective": {"use": "sft"},
        "data": {"path": str(world[1].demonstrations), "max_length": 48},
        "optim": {"lr": 3e-3, "max_steps": 4},
        "samples": {"count": 0},
        "batch": {"examples": 8, "micro_tokens": 256},
        "precision": {"matmul": "highest"},
    }
    run(recipe_from({**values, **stage}), output, Silent())
    return output


@pytest.fixture(scope="module")
def judge(world: tuple[Path, WorldFiles], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"path": str(world[1].pairs), "max_length": 48}
    return train(world, tmp_path_factory.mktemp("judge") / "reward", objective={"use": "reward"}, data=data)


def ask(world: tuple[Path, WorldFiles], *options: object, of: Path | None = None, reward: str = "words") -> Result:
    """Call the command; short completions of the world's prompts."""
    spec = reward if "/" in reward else f"{world[0].parent / 'rewards.py'}:{reward}"
    words = ["best-of-n", of or world[0], "--reward", spec, "--max-new-tokens", 8, "--n", 6, *options]
    return CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_best_is_the_largest_and_the_figures_are_those_of_the_samples(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    best, samples = tmp_path / "best.jsonl", tmp_path / "all.jsonl"
    result = ask(world, world[1].prompts, "--limit", 20, "--output", best, "--all-samples", samples)
    assert result.exception is None, result.output
    every = rows(samples)
    assert [row["prompt"] for row in every[::6]] == [row["prompt"] for row in rows(world[1].prompts)[:20]]
    groups = [every[start : start + 6] for start in range(0, len(every), 6)]
    assert all([row["sample"] for row in group] == list(range(6)) for group in groups)
    assert all(row["score"] == len(set(row["completion"].split())) / 10 for row in every)
    for row, group in zip(rows(best), groups, strict=True):
        first = next(one for one in group if one["score"] == max(one["score"] for one in group))
        assert row == {key: first[key] for key in ("prompt", "completion", "score")}
    scores = np.array([[row["score"] for row in group] for group in groups])
    assert f"mean score of a single sample: {scores.mean():.3f} (95 % interval" in result.output
    assert f"mean score of the best of 6: {scores.max(axis=1).mean():.3f} (95 % interval" in result.output
    assert f"at most {kl_bound(6):.3f} nats" in result.output
    told = re.findall(r"k = (\d+) +(-?[\d.]+) ", result.output)
    assert [int(k) for k, _ in told] == [1, 2, 4, 6]
    ends = [float(told[0][1]), float(told[-1][1])]
    assert ends == pytest.approx([scores.mean(), scores.max(axis=1).mean()], abs=6e-4)
    assert [float(mean) for _, mean in told] == sorted(float(mean) for _, mean in told)


def test_the_same_seed_gives_the_same_samples_and_more_rows_change_none(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    found = {}
    for name, limit, seed in (("few", 4, 0), ("more", 9, 0), ("other", 4, 1)):
        file = tmp_path / name
        assert ask(world, world[1].prompts, "--limit", limit, "--seed", seed, "--all-samples", file).exception is None
        found[name] = rows(file)[: 4 * 6]
    assert found["few"] == found["more"]
    assert found["few"] != found["other"]


def test_sft_trains_on_what_was_written_as_the_tokens_that_were_sampled(
    world: tuple[Path, WorldFiles], tmp_path: Path
) -> None:
    best, samples = tmp_path / "best.jsonl", tmp_path / "all.jsonl"
    result = ask(world, world[1].prompts, "--max-new-tokens", 24, "--output", best, "--all-samples", samples)
    assert result.exception is None, result.output
    opened = open_result(world[0])
    ends, unsaid = opened.loaded.end_tokens, set(opened.tokenizer.all_special_ids)
    settings = DataSettings(path=str(samples), max_length=64, on_bad_row="drop")
    dataset = load(settings, "demonstration", opened.tokenizer, None, ends, lambda done, total: None)
    exact = 0
    for row, tree in zip([row for row in rows(samples) if row["completion"]], dataset.train, strict=True):
        tokens = tree.completions[0].tokens
        assert tokens[-1] in ends
        if row["ended"] and not unsaid & set(tokens[:-1].tolist()):
            exact += row["tokens"] == len(tokens)
    assert exact > 20, "in the world a text has one way to be written as tokens"
    a_pass = len(rows(best)) // 8
    optim = {"lr": 1e-2, "max_steps": 4 * a_pass}
    trained = train(world, tmp_path / "run", data={"path": str(best), "max_length": 48}, optim=optim)
    losses = [row["loss"] for row in metrics(trained)]
    assert max(losses[-a_pass:]) < min(losses[:a_pass]), "no batch of the last pass is as unlikely as any of the first"


def test_columns_come_along_and_cannot_make_it_another_format(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    strange = {name for format in FORMATS for needs in format.needs for name in needs} - {"prompt"}
    assert {"label", "chosen", "rejected", "text", "output"} <= strange
    file, best = tmp_path / "in.jsonl", tmp_path / "best.jsonl"
    asked = {"prompt": [{"role": "user", "content": "the market hotel"}], "label": 1, "topic": "hotels", "score": 5}
    file.write_text(json.dumps({**asked, "completion": "Nice.", "kto_tag": True}) + "\n", encoding="utf-8")
    tuned = train(world, tmp_path / "run", template="chatml")
    result = ask(world, file, "--output", best, of=tuned, reward="target")
    assert result.exception is None, result.output
    assert "of one prompt, which gives no interval" in result.output
    assert "all completions score the same in 1 of 1 prompts" in result.output
    (row,) = rows(best)
    assert (row["prompt"], row["score"], row["topic"]) == (asked["prompt"], 1.0, "hotels")
    assert (row["source_label"], row["source_score"], row["source_completion"]) == (1, 5, "Nice.")
    assert row["completion"] == row["completion"].strip() != "Nice."
    assert detect(read(str(best))).format.name == "prompt_completion"
    pairs = ask(world, world[1].pairs, "--limit", 3, "--output", best)
    assert pairs.exception is None, pairs.output
    assert detect(read(str(best))).format.name == "prompt_completion"
    for name in strange:
        assert name not in rows(best)[0] or name in ("completion", "text", "output", "score"), name


def test_a_blank_best_is_left_out_and_a_cut_one_is_told(world: tuple[Path, WorldFiles], tmp_path: Path) -> None:
    best = tmp_path / "best.jsonl"
    result = ask(world, world[1].prompts, "--n", 40, "--output", best, reward="short")
    assert result.exception is None, result.output
    count = len(rows(world[1].prompts))
    blank = re.search(rf"of (\d+) of {count} prompts is blank", result.output)
    assert blank is not None
    assert len(rows(best)) == count - int(blank[1])
    assert all(row["completion"].strip() for row in rows(best))
    cut = ask(world, world[1].prompts, "--limit", 8, "--max-new-tokens", 2, "--output", best)
    assert "cut off by --max-new-tokens 2" in cut.output


def test_several_rewards_are_summed(world: tuple[Path, WorldFiles], judge: Path, tmp_path: Path) -> None:
    samples = tmp_path / "all.jsonl"
    result = ask(world, world[1].prompts, "--limit", 5, "--reward", judge, "--all-samples", samples)
    assert result.exception is None, result.output
    for row in rows(samples):
        assert set(row["rewards"]) == {"words", "reward"}
        assert row["score"] == pytest.approx(sum(row["rewards"].values()))
    assert len({row["rewards"]["reward"] for row in rows(samples)}) > 10
    assert "sum of 2 rewards" in result.output


def test_sharing_a_base_changes_no_score(world: tuple[Path, WorldFiles], judge: Path) -> None:
    opened = open_result(world[0])
    seat = Seat(opened.model, Adapters(opened.loaded.module))
    rng = np.random.default_rng(0)
    drawn = [rng.integers(4, 90, size).astype(np.int32) for size in (5, 7, 3, 4)]
    trees = [
        Tree(drawn[0], tuple(Completion(tokens, np.ones(len(tokens), dtype=np.bool_)) for tokens in drawn[1:])),
        Tree(drawn[3], (Completion(drawn[0], np.ones(5, dtype=np.bool_)),)),
    ]
    answers = Answers([""] * 4, [""] * 4, {}, trees)
    found = []
    for place in (seat, None):
        judged = Judged(opened.loaded.name, opened.loaded.digest, opened.tokenizer, place)
        found.append(build_reward(RewardSettings(use=str(judge)), judged, 1.0)(answers))
    assert len(set(found[0])) == 4
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert any(name.startswith("reward") for name in seat.adapters.names), "it sits over the policy's base"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(completion_server, "FIRST_PAUSE", 0.01)
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["vllm", "llama_cpp"])
def test_a_server_gets_the_token_ids_that_training_had_and_no_weights_are_read(
    world: tuple[Path, WorldFiles], stub: Stub, tmp_path: Path, kind: str
) -> None:
    """Raw text went into the template in training, so it goes there again."""
    opened = open_result(world[0])
    (end,) = opened.loaded.end_tokens
    said = opened.tokenizer("the quiet sunny hotel", add_special_tokens=False)["input_ids"]
    assert len(set(said) - {opened.tokenizer.unk_token_id}) == 4, "four words of the world, each another token"

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        counts = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(said)}
        if kind == "llama_cpp":
            tokens = [*said[: 1 + body["seed"] % len(said)], end]
            answer = {**llama(tokens), "usage": {**counts, "completion_tokens": len(tokens)}}
        else:
            choices = [choice(n, (*said[: 1 + n], end)) for n in range(body["n"])]
            answer = {**vllm(*choices), "usage": counts}
        handler.send(200, json.dumps(answer).encode())

    stub.replies = [reply]
    tuned = train(world, tmp_path / "run", template="chatml", adapter="none")
    (tuned / "final" / "model.safetensors").unlink()
    settings = DataSettings(path=str(world[1].demonstrations), max_length=64)
    ends = opened.loaded.end_tokens
    trees = load(settings, "demonstration", opened.tokenizer, "chatml", ends, lambda done, total: None).train
    best = tmp_path / "best.jsonl"
    options = ["--n", 4, "--server", stub.url, "--server-kind", kind, "--server-model", "tuned", "--output", best]
    result = ask(world, world[1].demonstrations, "--limit", 3, *options, of=tuned)
    assert result.exception is None, result.output
    sent = {tuple(body["prompt"]) for body in stub.requests}
    assert sent == {tuple(tree.prompt.tolist()) for tree in trees[:3]}
    assert {body["model"] for body in stub.requests} == {"tuned"}
    whole = opened.tokenizer.decode(said)
    assert len(rows(best)) == 3
    if kind == "vllm":
        assert {(row["completion"], row["score"]) for row in rows(best)} == {(whole, 0.4)}
    else:
        assert all(whole.startswith(row["completion"]) for row in rows(best))


def test_what_is_wrong_is_said_before_anything_is_sampled(
    world: tuple[Path, WorldFiles], judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(world[0].parent / "rewards.py", tmp_path / "rewards.py")
    monkeypatch.setattr("truing.build.writers.sample", lambda *args, **more: pytest.fail("it was sampled"))
    prompts = world[1].prompts
    rewards = f"{tmp_path / 'rewards.py'}"
    cases = [
        (ask(world, prompts, "--n", 1), "best of one sample is that sample; give at least 2"),
        (ask(world, prompts, "--temperature", 0), "the same completion 6 times; give more than 0"),
        (ask(world, prompts, of=tmp_path / "none"), "no run or model folder .*none; give a run"),
        (ask(world, prompts, of=judge), f"is a reward model: .* give it as --reward {judge}"),
        (ask(world, prompts, "--max-new-tokens", 60), r"prompts.jsonl:1: a prompt of .* lower --max-new-tokens"),
        (ask(world, prompts, reward=str(tmp_path / "no")), "--reward: there is no run or model folder .*rewards.py:fn"),
        (ask(world, prompts, reward=rewards), "--reward: .* is a file; .* written ./rewards.py:fn"),
        (ask(world, prompts, reward="wods"), r"--reward: .*no function 'wods' in it \(it has: .*words"),
        (ask(world, prompts, reward="nan"), "--reward: .*nan returned nan for completion 0"),
        (ask(world, prompts, reward=str(world[0])), "is no reward model: it has no score head"),
        (ask(world, world[1].corpus), "truing best-of-n needs prompts"),
        (ask(world, prompts, "--output", prompts), "--output: .*prompts, which is only read"),
        (ask(world, prompts, "--output", tmp_path / "no" / "best.jsonl"), "--output: .*there is no .*no"),
        (ask(world, prompts, "--all-samples", tmp_path), "--all-samples: .* is a folder"),
        (ask(world, prompts, "--server", "localhost", "--server-kind", "vllm"), "--server: 'url': .*http://localhost"),
        (ask(world, prompts, "--server", "http://localhost:9"), "--server needs --server-kind"),
        (ask(world, prompts, "--server-kind", "vllm"), "belong to --server"),
        (
            ask(world, prompts, "--server", "http://localhost:9", "--server-kind", "vllm", "--top-k", 3),
            "--top-k and --top-p do not go with --server",
        ),
    ]
    for result, expected in cases:
        assert result.exception is not None, expected
        assert re.search(expected, str(getattr(result.exception, "message", result.exception))), result.exception
        assert result.exception.exit_code == 2, expected  # type: ignore[attr-defined]


def test_a_server_that_is_not_there_is_an_input_error(world: tuple[Path, WorldFiles], stub: Stub) -> None:
    stub.replies = [lambda handler, body: handler.send(404, b'{"error": "no such model"}')]
    options = ["--server", stub.url, "--server-kind", "vllm"]
    result = ask(world, world[1].prompts, *options)
    assert result.exception is not None
    assert re.search(f"no such model; check 'url' and 'model' .*{world[0]}", str(result.exception))
