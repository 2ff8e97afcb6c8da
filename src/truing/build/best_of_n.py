"""`truing best-of-n`: samples several completions of each prompt, scores them, and keeps the best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from truing.build.load_result import is_scorer, template_of
from truing.build.rewards import answers_of, as_plain, build_reward, check_reward, named_apart
from truing.build.score import Z
from truing.build.writers import Draw, Writer, in_process, on_server
from truing.core.best_of import FloatArray, clustered_error, expected_best, kl_bound
from truing.core.errors import DataError, InputError, MachineError, RunError
from truing.core.samples import Sampled
from truing.core.text import harmless
from truing.core.trees import Tree
from truing.data.dataset import Dataset, check_sources, load
from truing.data.encoding import UNCUT
from truing.data.examples import Prompt
from truing.data.settings import DataSettings
from truing.data.templates import Template
from truing.models.decoding import CACHE_TOKENS
from truing.rl.rewards import Keys, Reward
from truing.rl.server_settings import ServerSettings
from truing.rl.settings import RewardSettings
from truing.training.progress import Reporter
from truing.training.run_directory import replace_file

KEYS = Keys("--reward", "--reward-timeout")
COMMAND = "truing best-of-n"
AT_ONCE = 256
"""Prompts that are sampled and scored together at most."""

OWN = ("prompt", "completion", "score", "sample", "tokens", "ended", "rewards")
"""Columns that are written."""
OTHER_FORMATS = (
    *("chosen", "rejected", "label", "kto_tag", "thumbs", "feedback", "messages", "conversations", "instruction"),
    *("response", "response_a", "response_b", "conversation_a", "conversation_b", "winner"),
    *("completions", "responses", "answers", "ranks", "scores", "overall_score", "rating", "helpfulness"),
)
"""Columns by which rows would be taken for something else than prompts and completions."""
SOURCE = "source_"
"""Put before the name of a row's own column that is one of these."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Which files are written, if any."""

    best: Path | None = None
    """A row a prompt, for SFT."""
    samples: Path | None = None
    """A row a completion."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """One completion."""

    text: str
    """As a row of data has it."""
    tokens: int
    ended: bool
    rewards: tuple[float, ...]

    @property
    def score(self) -> float:
        return sum(self.rewards)


def best_of_n(
    run: Path,
    files: Sequence[str],
    rewards: Sequence[str],
    draw: Draw,
    targets: Targets,
    reporter: Reporter,
    *,
    limit: int | None = None,
    reward_timeout: float = 60.0,
    server: ServerSettings | None = None,
) -> list[str]:
    """Sample completions of the files' prompts, write what the targets ask for, and return sentences about the scores.

    Several rewards are summed. With a server the run gives the tokenizer and the template alone. What is wrong is found
    before the first sample is drawn, as far as that can be.
    """
    if not rewards:
        raise InputError("best-of-n needs a reward to tell completions apart; give --reward")
    _check_draw(draw, server)
    _check_targets(targets, files)
    _check_run(run)
    settings = DataSettings(path=tuple(files), max_length=UNCUT, limit=limit)
    examples = check_sources(settings, "prompt", needed_by=COMMAND)
    asked = [RewardSettings(use=reward) for reward in rewards]
    for reward in asked:
        check_reward(reward, reward_timeout, examples, keys=KEYS)
    writer = in_process(run, draw) if server is None else on_server(run, draw, server)
    dataset = load(
        settings,
        "prompt",
        writer.tokenizer,
        template_of(run),
        writer.end_tokens,
        lambda done, total: None,
        needed_by=COMMAND,
    )
    _check_room(dataset.train, draw, writer.max_positions, run)
    for line in dataset.report.lines():
        reporter.say(f"  {harmless(line)}")
    judges: list[Reward] = []
    try:
        for reward in asked:
            judges.append(named_apart(build_reward(reward, writer.judged, reward_timeout, KEYS), judges))
        scored = _sample(dataset, writer, judges, draw, reporter)
    finally:
        for judge in judges:
            judge.close()
    prompts = [dataset.prompts[tree.origin] for tree in dataset.train if tree.origin is not None]
    names = [judge.name for judge in judges]
    if targets.samples is not None:
        _write_rows(targets.samples, _all_rows(prompts, scored, names))
    if targets.best is not None:
        _write_rows(targets.best, _best_rows(prompts, scored, draw, reporter))
    return summary(dataset.train, scored, names)


def _check_draw(draw: Draw, server: ServerSettings | None) -> None:
    if draw.count < 2:
        raise InputError(f"--n is {draw.count}, and the best of one sample is that sample; give at least 2")
    if draw.choice.temperature == 0:
        raise InputError(f"--temperature 0 writes the same completion {draw.count} times; give more than 0, such as 1")
    if server is not None and not draw.choice.whole:
        raise InputError(
            "--top-k and --top-p do not go with --server, which is asked for samples of the whole distribution; leave "
            "them out, or leave out --server"
        )


def _check_targets(targets: Targets, files: Sequence[str]) -> None:
    """Refuse what could not be written, or would destroy data, before anything is sampled."""
    read = {Path(file).resolve() for file in files}
    for name, target in (("--output", targets.best), ("--all-samples", targets.samples)):
        if target is None:
            continue
        if target.is_dir() or not target.parent.is_dir():
            what = "is a folder" if target.is_dir() else f"lies in no folder (there is no {target.parent})"
            raise InputError(f"{name}: {target} {what}; give a file name in a folder that exists")
        if target.resolve() in read:
            raise InputError(f"{name}: {target} is also a file of prompts, which is only read; give another name")
        read.add(target.resolve())


def _check_run(run: Path) -> None:
    if not run.exists():
        raise RunError(f"there is no run or model folder {run}; give a run, an adapter folder or a model folder")
    if is_scorer(run):
        raise RunError(
            f"{run} is a reward model: it scores completions and writes none; give it as --reward {run}, and as RUN "
            "what writes them"
        )


def _check_room(trees: Sequence[Tree], draw: Draw, positions: int | None, run: Path) -> None:
    for tree in trees:
        if positions is not None and len(tree.prompt) + draw.max_new_tokens > positions:
            raise DataError(
                f"{tree.origin}: a prompt of {len(tree.prompt)} tokens and --max-new-tokens {draw.max_new_tokens} are "
                f"more than the {positions} positions of {run}; shorten the prompt, or lower --max-new-tokens"
            )


def _sample(
    dataset: Dataset, writer: Writer, judges: Sequence[Reward], draw: Draw, reporter: Reporter
) -> list[list[_Scored]]:
    """Write and score some prompts at a time, so that a reward's fault shows early: completions of each prompt."""
    trees = dataset.train
    at_once = max(1, min(AT_ONCE, CACHE_TOKENS // (draw.count * draw.max_new_tokens)))
    found: list[list[_Scored]] = []
    reporter.begin("sample", len(trees))
    try:
        for start in range(0, len(trees), at_once):
            some = trees[start : start + at_once]
            seed = int(np.random.SeedSequence((draw.seed, start)).generate_state(1)[0])
            groups = writer.write([tree.prompt.tolist() for tree in some], seed)
            prompts = [dataset.prompts[tree.origin] for tree in some if tree.origin is not None]
            answers = answers_of(some, prompts, groups, writer.tokenizer)
            columns = zip(*(judge(answers) for judge in judges), strict=True)
            for tree, prompt, group in zip(some, prompts, groups, strict=True):
                texts = _texts(tree, prompt, group, dataset.template, writer.tokenizer)
                found.append(
                    [
                        _Scored(text, len(row.tokens), row.ended, next(columns))
                        for text, row in zip(texts, group, strict=True)
                    ]
                )
            scores = _scores(found)
            figures = {"mean score": float(scores.mean()), "best": float(scores.max(axis=1).mean())}
            reporter.advance(len(found), figures)
    finally:
        reporter.end()
    return found


def _texts(
    tree: Tree, prompt: Prompt, group: Sequence[Sampled], template: Template, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Completions as rows of data have them: a turn without space around it, or what follows behind raw text.

    Tokens decoded alone may lose the space before them, and a row of raw text has to bring it.
    """

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    if not isinstance(template.wrap(prompt.prompt), str):
        return [decode(row.tokens.tolist()).strip() for row in group]
    before = decode(tree.prompt.tolist())
    wholes = [decode([*tree.prompt.tolist(), *row.tokens.tolist()]) for row in group]
    return [
        whole.removeprefix(before) if whole.startswith(before) else decode(row.tokens.tolist())
        for whole, row in zip(wholes, group, strict=True)
    ]


def _all_rows(
    prompts: Sequence[Prompt], scored: Sequence[Sequence[_Scored]], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for prompt, group in zip(prompts, scored, strict=True):
        for number, one in enumerate(group):
            row = {**_row(prompt, one), "sample": number, "tokens": one.tokens, "ended": one.ended}
            yield row if len(names) == 1 else {**row, "rewards": dict(zip(names, one.rewards, strict=True))}


def _best_rows(
    prompts: Sequence[Prompt], scored: Sequence[Sequence[_Scored]], draw: Draw, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """The first of the best of each prompt; a blank one is left out, for nothing can learn from it."""
    best = [max(group, key=lambda one: one.score) for group in scored]
    blank = sum(not one.text.strip() for one in best)
    if blank:
        reporter.warn(f"the best completion of {blank} of {len(best)} prompts is blank; they are left out of --output")
    cut = sum(not one.ended for one in best if one.text.strip())
    if cut:
        reporter.warn(
            f"{cut} of the {len(best) - blank} completions in --output were cut off by --max-new-tokens "
            f"{draw.max_new_tokens}, and sft would teach to stop there; raise it, or lower such scores in the reward"
        )
    for prompt, one in zip(prompts, best, strict=True):
        if one.text.strip():
            yield _row(prompt, one)


def _row(prompt: Prompt, one: _Scored) -> dict[str, Any]:
    """A row that is read as a prompt with its completion, whatever else the prompt's own row had."""
    columns = {
        f"{SOURCE}{name}" if name in OWN or name in OTHER_FORMATS else name: value
        for name, value in prompt.columns.items()
    }
    return {"prompt": as_plain(prompt.prompt), "completion": one.text, "score": one.score, **columns}


def _write_rows(target: Path, rows: Iterator[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    try:
        replace_file(target, text)
    except OSError as failure:
        raise MachineError(f"cannot write {target}: {failure.strerror or failure}") from failure


def summary(trees: Sequence[Tree], scored: Sequence[Sequence[_Scored]], names: Sequence[str]) -> list[str]:
    """Mean scores of one sample, of the best of all, and of the best of fewer."""
    scores = _scores(scored)
    count = scores.shape[1]
    # Rows with the same prompt are one cluster, and a prompt's completions are never independent.
    keys = [tree.prompt.tobytes() for tree in trees]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    clusters = np.array([numbers[key] for key in keys])
    each = [one for group in scored for one in group]
    lines = [
        f"{len(trees):,} prompts, {count} completions each of {np.mean([one.tokens for one in each]):.1f} tokens on "
        f"average, {np.mean([one.ended for one in each]):.1%} ended by themselves",
        f"mean score of a single sample: {_mean(scores.ravel(), np.repeat(clusters, count))}",
        f"mean score of the best of {count}: {_mean(scores.max(axis=1), clusters)}",
        f"KL from what was sampled: at most {kl_bound(count):.3f} nats",
    ]
    if len(names) > 1:
        rewards = np.array([one.rewards for one in each])  # float64 [C, R]
        means = (f"{name} {mean:.3f}" for name, mean in zip(names, rewards.mean(axis=0), strict=True))
        lines.append(f"the score is the sum of {len(names)} rewards, whose means are: {', '.join(means)}")
    equal = int((np.ptp(scores, axis=1) == 0).sum())
    if equal:
        lines.append(f"all completions score the same in {equal} of {len(trees)} prompts, whose first is then the best")
    lines.append("expected score of the best of k samples, and the bound of its KL:")
    sizes = sorted({*(2**power for power in range(count.bit_length())), count})
    return lines + [f"  k = {k:<4} {_mean(expected_best(scores, k), clusters)}, {kl_bound(k):.3f} nats" for k in sizes]


def _scores(scored: Sequence[Sequence[_Scored]]) -> FloatArray:
    """float64 [P, n]."""
    return np.array([[one.score for one in group] for group in scored], dtype=np.float64)


def _mean(values: FloatArray, clusters: np.ndarray) -> str:
    mean, error = float(values.mean()), clustered_error(values, clusters)
    if error is None:
        return f"{mean:.3f} (of one prompt, which gives no interval)"
    return f"{mean:.3f} (95 % interval {mean - Z * error:.3f} to {mean + Z * error:.3f})"
