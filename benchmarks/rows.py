"""Normalise data files so that two engines cannot disagree about what a row is, and say which tokens it must become.

Pairs become `prompt`, `chosen`, `rejected`, demonstrations `prompt`, `completion`, judgements these and `label`; all
but the label are lists of messages. A row that is longer than the limit is shortened here, as text (the starts of its
longest turns, the end of its answers), so that neither engine has anything left to truncate. Of the pairs of one prompt
only the first stays, since Truing's reward modelling takes all of them into one step. `tokens.json` holds, for every
row, the tokens that the tokenizer gives when prompt and completions are tokenised apart; both engines must arrive at
exactly these.

python benchmarks/rows.py pairs --input dpo.json --model work/25m/model --limit 1024 --output work/pairs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

Message = dict[str, str]
Row = dict[str, Any]  # `prompt` and answers: lists of messages; `label`: a truth value
Tokens = dict[str, list[int]]

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Clipper:
    """Renders, counts and shortens messages with one tokenizer."""

    def __init__(self, model_folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_tokens(self, prompt: list[Message]) -> list[int]:
        return self.plain(self._rendered(prompt, header=True))

    def completion_tokens(self, prompt: list[Message], completion: list[Message]) -> list[int]:
        head = self._rendered(prompt, header=True)
        whole = self._rendered(prompt + completion, header=False)
        if not whole.startswith(head):
            raise SystemExit("the chat template does not render a prompt as the beginning of the conversation")
        return self.plain(whole.removeprefix(head))

    def first_tokens(self, text: str, count: int) -> str:
        return self._text(self.plain(text)[:count])

    def last_tokens(self, text: str, count: int) -> str:
        return self._text(self.plain(text)[-count:] if count > 0 else [])

    def _rendered(self, messages: list[Message], *, header: bool) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)

    def _text(self, tokens: list[int]) -> str:
        # A cut may fall inside a character: its torn bytes decode to U+FFFD and are left out.
        return self._tokenizer.decode(tokens).strip("\ufffd").strip()


def shorten_answer(clip: Clipper, prompt: list[Message], answer: str, limit: int) -> str:
    """The beginning of `answer` that makes a completion of at most `limit` tokens."""
    keep = limit
    while len(clip.completion_tokens(prompt, assistant(answer))) > limit:
        keep -= 1
        answer = clip.first_tokens(answer, keep)
    return answer


def shorten_prompt(clip: Clipper, prompt: list[Message], limit: int) -> list[Message]:
    """`prompt` with the starts of its longest messages cut until it renders to at most `limit` tokens."""
    while (excess := len(clip.prompt_tokens(prompt)) - limit) > 0:
        sizes = [len(clip.plain(message["content"])) for message in prompt]
        longest = sizes.index(max(sizes))
        cut = min(excess, sizes[longest] // 2 + 1)
        message = {**prompt[longest], "content": clip.last_tokens(prompt[longest]["content"], sizes[longest] - cut)}
        prompt = [*prompt[:longest], message, *prompt[longest + 1 :]]
    return prompt


def assistant(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def conversation(turns: list[dict[str, str]]) -> list[Message]:
    return [{"role": ROLES[turn["from"]], "content": turn["value"].strip()} for turn in turns]


def pair(raw: dict[str, Any], clip: Clipper, limit: int) -> Row:
    """One comparison; prompt and longest answer fill at most `limit` tokens, and the prompt may have half of them."""
    prompt = conversation(raw["conversations"])
    answers = [raw[side]["value"].strip() for side in ("chosen", "rejected")]
    sizes = [len(clip.completion_tokens(prompt, assistant(answer))) for answer in answers]
    prompt = shorten_prompt(clip, prompt, max(limit - max(sizes), limit // 2))
    room = limit - len(clip.prompt_tokens(prompt))
    chosen, rejected = (assistant(shorten_answer(clip, prompt, answer, room)) for answer in answers)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def demonstration(raw: dict[str, Any], clip: Clipper, limit: int) -> Row:
    """One instruction with its answer; the input, where there is one, follows the instruction on a line of its own."""
    asked = "\n".join(part.strip() for part in (raw["instruction"], raw["input"]) if part.strip())
    return answered([{"role": "user", "content": asked}], raw["output"].strip(), clip, limit)


def judgement(raw: dict[str, Any], clip: Clipper, limit: int) -> Row:
    """A conversation whose last turn is the answer, and whether that is a good one."""
    turns = [{"role": turn["role"], "content": turn["content"].strip()} for turn in raw["messages"]]
    return {**answered(turns[:-1], turns[-1]["content"], clip, limit), "label": raw["label"]}


def answered(prompt: list[Message], answer: str, clip: Clipper, limit: int) -> Row:
    """A prompt of at most half the limit, and what of its answer fits in then."""
    prompt = shorten_prompt(clip, prompt, limit // 2)
    room = limit - len(clip.prompt_tokens(prompt))
    return {"prompt": prompt, "completion": assistant(shorten_answer(clip, prompt, answer, room))}


CONVERTERS: dict[str, Callable[[dict[str, Any], Clipper, int], Row]] = {
    "pairs": pair,
    "demonstrations": demonstration,
    "judgements": judgement,
}


def sides(row: Row) -> list[str]:
    return [name for name in row if name not in ("prompt", "label")]


def row_tokens(row: Row, clip: Clipper) -> Tokens:
    answers = {side: clip.completion_tokens(row["prompt"], row[side]) for side in sides(row)}
    return {"prompt": clip.prompt_tokens(row["prompt"]), **answers}


def usable(row: Row) -> bool:
    """Neither blank answers nor a pair whose two sides are the same: engines treat those differently."""
    answers = [row[side][0]["content"] for side in sides(row)]
    return all(answers) and len(set(answers)) == len(answers)


def first_of_each_prompt(rows: list[Row]) -> list[Row]:
    firsts: dict[str, Row] = {}
    for row in rows:
        firsts.setdefault(json.dumps(row["prompt"]), row)
    return list(firsts.values())


def write_rows(kind: str, source: Path, model_folder: Path, limit: int, folder: Path) -> str:
    """Write `rows.jsonl` and `tokens.json`; returns a sentence about them."""
    clip = Clipper(model_folder)
    raw_rows = json.loads(source.read_text(encoding="utf-8"))
    rows = [CONVERTERS[kind](raw, clip, limit) for raw in raw_rows]
    kept = [row for row in rows if usable(row)]
    if kind == "pairs":
        kept = first_of_each_prompt(kept)
    tokens = [row_tokens(row, clip) for row in kept]
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    prompt = fmean(len(row["prompt"]) for row in tokens)
    answer = fmean(len(row[side]) for row in tokens for side in row if side != "prompt")
    longest = max(len(row["prompt"]) + max(len(row[side]) for side in row if side != "prompt") for row in tokens)
    return (
        f"{kind}: {len(kept)} of {len(raw_rows)} rows, prompts {prompt:.0f} and answers {answer:.0f} tokens "
        f"on average, longest row {longest} of {limit}"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kind", choices=sorted(CONVERTERS))
    arguments.add_argument("--input", type=Path, required=True)
    arguments.add_argument("--model", type=Path, required=True, help="folder with the tokenizer")
    arguments.add_argument("--limit", type=int, default=1024, help="tokens of a prompt with one answer")
    arguments.add_argument("--output", type=Path, required=True)
    chosen = arguments.parse_args()
    print(write_rows(chosen.kind, chosen.input, chosen.model, chosen.limit, chosen.output))


if __name__ == "__main__":
    main()
