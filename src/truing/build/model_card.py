"""The README.md of a result, in the Hugging Face form: what it is, how it was made, how it did, how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from truing.build.card_facts import CardFacts, hub_id, public_name
from truing.build.loading_code import loading_code
from truing.build.markdown import block, code, table
from truing.core.text import harmless
from truing.objectives.policy_gradient import RolloutObjective
from truing.recipe.load import dump
from truing.recipe.schema import Recipe, Stage

Cells = tuple[str, str]


def model_card(facts: CardFacts) -> str:
    """Write the card. Names, paths and tokens are other people's text, and stand as code."""
    sections = (
        _introduction(facts),
        "## How it was trained\n\n" + table(("", ""), _training(facts)),
        "## Data\n\n" + _data(facts),
        *(["## Stages before this one\n\n" + _earlier(facts)] if facts.earlier else []),
        "## Results\n\n" + _results(facts),
        "## How to load it\n\n" + block(loading_code(facts), "python"),
        "## Chat template and end of an answer\n\n" + _template(facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts)),
        "## Versions\n\n" + ", ".join(f"{n} {code(v)}" for n, v in facts.environment["versions"].items()) + ".",
        "## Recipe\n\n" + _recipe(facts.stage),
    )
    return f"---\n{_metadata(facts)}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(facts: CardFacts) -> str:
    base = None if facts.adapter and facts.merged else hub_id(facts.base)
    datasets = [found for name in facts.stage.data.paths if "/" in (found := hub_id(name.partition(":")[0]) or "")]
    method = re.sub(r"[^\w.-]", "-", facts.objective.name)
    values: dict[str, Any] = {
        **({"base_model": base} if base else {}),
        "library_name": "peft" if facts.adapter else "transformers",
        "pipeline_tag": "text-classification" if facts.scores else "text-generation",
        **({"datasets": datasets} if datasets else {}),
        "tags": ["truing", method, *(["lora"] if facts.adapter else []), *(["reward-model"] if facts.scores else [])],
    }
    return yaml.safe_dump(values, sort_keys=False)


def _introduction(facts: CardFacts) -> str:
    base = code(public_name(facts.base))
    shape = "A LoRA adapter" if facts.adapter else "A model with all weights trained"
    what = "a reward model, which gives a prompt and its answer one number" if facts.scores else "a language model"
    over = " after earlier stages were merged into it" if facts.adapter and facts.merged else ""
    return (
        f"# {base} trained with {code(facts.objective.name)}\n\n"
        f"{shape}, of {base}{over}: {what}. Trained with Truing by the method {code(facts.objective.name)}"
        f"{_source(facts)}. This card was written by the run itself, from what it recorded."
    )


def _source(facts: CardFacts) -> str:
    paper = harmless(facts.objective.paper)
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
    return f" ([arXiv:{found[1]}](https://arxiv.org/abs/{found[1]}))" if found else ""


def _training(facts: CardFacts) -> Iterator[Cells]:
    stage, last = facts.stage, facts.metrics[-1]
    optim, batch = stage.optim, stage.batch
    yield "method", ", ".join(f"{key} {code(value)}" for key, value in stage.objective.items())
    yield "steps", f"{last['step']}, {last['rows']:,} rows, {last['num_tokens']:,} tokens"
    if facts.restored_step is not None:
        yield "the result", f"the state of step {facts.restored_step}, the best one: a guard ended training there"
    yield "in one step", f"{batch.examples} rows" if batch.tokens is None else f"{batch.tokens:,} tokens"
    yield "peak learning rate", f"{optim.lr:g}, {optim.schedule}, warm-up {optim.warmup:g} of the steps"
    yield "AdamW", f"betas {optim.beta1:g} and {optim.beta2:g}, weight decay {optim.weight_decay:g}"
    yield "longest row", f"{stage.data.max_length} tokens"
    if stage.adapter is not None:
        adapter = stage.adapter
        kind = "DoRA" if adapter.dora else "LoRA"
        yield kind, f"rank {adapter.rank}, alpha {adapter.effective_alpha:g}, dropout {adapter.dropout:g}"
    if facts.packed:
        yield "base", "linear layers in NF4, double-quantised, by bitsandbytes"
    if isinstance(facts.objective, RolloutObjective):
        rollout = stage.rollout
        rewards = ", ".join(code(public_name(use)) for reward in rollout.rewards for use in reward.uses)
        yield "rewards", rewards
        yield "completions", f"up to {rollout.max_new_tokens} tokens at temperature {rollout.temperature:g}"
    yield "numbers", f"{facts.environment['dtype']} on {code(facts.environment['device'])}, seed {stage.seed}"
    yield "weights at the start", f"SHA-256 {code(facts.model_sha256)}"


def _data(facts: CardFacts) -> str:
    rows, trees, cuts = (facts.data[key] for key in ("rows", "trees", "truncated"))
    dropped = sum(len(numbers) for files in facts.data["dropped"].values() for numbers in files.values())
    apart = facts.data["evaluation"]
    measured = f"\n\nRows that were only measured on:\n\n{_files(apart['files'])}" if apart else ""
    return (
        f"{_files(facts.data['files'])}\n\n{rows['used']:,} of {rows['read']:,} rows were used ({dropped:,} dropped); "
        f"{trees['train']:,} to train on, {trees['held_out']:,} held out. To fit the length, the prompts of "
        f"{cuts['prompts']:,} rows and the completions of {cuts['completions']:,} were cut. "
        f"{facts.data['duplicates']:,} repeat another row exactly.{measured}"
    )


def _files(files: Any) -> str:
    rows = [
        (code(public_name(file["name"])), f"{file['rows']:,}", code(file["format"]), code(file["sha256"]))
        for file in files
    ]
    return table(("file", "rows read", "format", "SHA-256"), rows)


def _earlier(facts: CardFacts) -> str:
    def told(files: tuple[Mapping[str, Any], ...]) -> str:
        return ", ".join(f"{code(public_name(f['name']))} (SHA-256 {code(f['sha256'])})" for f in files)

    return "\n".join(
        f"{number}. {code(public_name(stage.method))}, {stage.steps} steps on {told(stage.files)}"
        for number, stage in enumerate(facts.earlier, 1)
    )


def _results(facts: CardFacts) -> str:
    first, last = facts.metrics[0], facts.metrics[-1]
    step = "the last step" if facts.restored_step is None else f"step {facts.restored_step}, whose state this is"
    parts = []
    measured = _named(facts.measured, "eval_")
    if measured:
        source = facts.stage.data.eval_path
        files = "the files above, with prompts that were not trained on"
        of = f"of {code(public_name(source)) if source else files}"
        parts.append(f"After {step}, on {facts.evaluated_rows:,} held-out rows {of}:")
        parts.append(_figures({name.removeprefix("eval_"): value for name, value in measured.items()}))
    judged = _named(facts.measured, "judge/")
    if judged:
        judge = code(public_name(facts.stage.evaluation.judge or ""))
        parts.append(f"After {step}, what {judge} says of answers to prompts that were not trained on:")
        parts.append(_figures(judged))
    if not measured and not judged:
        parts.append("Nothing was measured on held-out rows.")
    forgotten = _named(last, "forgetting/")
    if forgotten:
        text = code(public_name(facts.stage.forgetting.path or ""))
        parts.append(f"On general text that nothing was trained on ({text}), in nats a token:")
        parts.append(_figures(forgotten))
    if first["loss"] is not None and last["loss"] is not None:
        parts.append(
            f"The loss on rows being trained on was {first['loss']:.4g} in the first step and {last['loss']:.4g} in "
            "the last, each on the rows of that step alone."
        )
    return "\n\n".join(parts)


def _named(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(prefix) and value is not None}


def _figures(values: Mapping[str, float]) -> str:
    return table(("figure", "value"), [(code(name), f"{value:.4g}") for name, value in values.items()])


def _template(facts: CardFacts) -> str:
    ends = ", ".join(code(token) for token in facts.end_tokens) or "none"
    if facts.template.source is None:
        return f"The tokenizer has no chat template; prompts are plain text. Tokens that end an answer: {ends}."
    name, wrapped = code(public_name(facts.template.name)), "also" if facts.template.wraps_text else "not"
    return (
        f"Conversations are rendered by the template {name}, which the tokenizer here carries "
        f"(SHA-256 {code(facts.template.digest)}); raw texts were {wrapped} put into it. "
        f"Tokens that end an answer: {ends}."
    )


def _limits(facts: CardFacts) -> Iterator[str]:
    if not any(key.startswith(("eval_", "judge/")) for key in facts.measured):
        yield "No figure here tells how it does on rows that it was not trained on."
    elif facts.stage.data.eval_path is None:
        yield "The held-out rows come from the files that it was trained on; of other text the figures tell nothing."
    else:
        yield "The figures tell of the rows that they were measured on, and of no other text."
    if isinstance(facts.objective, RolloutObjective):
        yield "It was trained towards the rewards named above; a higher reward is not by itself a better answer."
    if facts.scores:
        yield "Scores compare answers to one prompt; they have no unit, and between prompts they mean little."
    if facts.stage.forgetting.path is None and not facts.scores:
        yield "What the training cost elsewhere was not measured."
    if facts.packed:
        yield "It was trained over a base in four bits, and answers a little otherwise over the original one."
    if facts.metrics[-1]["skipped_steps"]:
        yield f"{facts.metrics[-1]['skipped_steps']} steps had no finite gradient and were skipped."
    yield "The run does not know who wrote the data, people or programs, nor under which licence."


def _recipe(stage: Stage) -> str:
    values = yaml.safe_load(dump(Recipe(stages=(stage.model_copy(update={"trackers": ()}),))))
    text = yaml.safe_dump(_published({"stages": values["stages"]}), sort_keys=False, allow_unicode=True)
    how = "`truing train recipe.yaml --output RUN` with the files that it names beside it repeats this stage."
    return f"{how}\n\n{block(text, 'yaml')}"


def _published(value: Any) -> Any:
    """The same values, paths without the folders above them."""
    if isinstance(value, dict):
        return {key: _published(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_published(inner) for inner in value]
    return public_name(value) if isinstance(value, str) else value
