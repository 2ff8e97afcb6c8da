"""Examples → trees: rendering, tokenising prompt and completions apart, end tokens, masks, and the length limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from truing.core.errors import TemplateError
from truing.core.trees import Completion, Origin, Tree
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Messages, Prompt, Words
from truing.data.faults import Faults, RowError
from truing.data.rows import as_messages
from truing.data.settings import DataSettings, LossOn
from truing.data.template_limits import TooCostly
from truing.data.templates import Part, Template
from truing.data.tokens import Piece, Pieces
from truing.data.truncation import Cuts, longest, truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000
"""Rows rendered and tokenised together."""

UNCUT = 1 << 30
"""A length limit that cuts nothing."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An example as text: its prompt, and each completion in parts."""

    prompt: str
    branches: tuple[tuple[Part, ...], ...]
    first_token_prompts: bool = False
    """The prompt is the first token of the one completion, because everything else is trained."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Trees in the order of their examples, and what did not become one."""

    trees: tuple[Tree, ...]
    kept: tuple[int, ...]
    """The index of each tree's example."""
    refused: Faults
    """Rows that the template refused."""
    lost: Faults
    """Rows from which the length limit left nothing to learn."""
    cuts: Cuts
    shortest: int
    """Tokens of the shortest row before any was cut; 0 where there is none."""
    stops_inside: tuple[Origin, ...]
    """Rows whose answer holds an end token before its end, as text that was written there."""


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    settings: DataSettings,
    end_tokens: frozenset[int],
    on_progress: Callable[[int, int], None],
) -> Encoded:
    """Turn examples into trees of at most `settings.max_length` tokens for the prompt and any one completion.

    `end_tokens` are the ids that end an answer; every trained answer ends with one unless it was cut. `on_progress` is
    told how many of the examples are done. Raises TemplateError where a conversation cannot be rendered, unless bad
    rows are to be dropped.
    """
    pieces = Pieces(tokenizer, end_tokens)
    _check_template(examples, template)
    trees: list[Tree] = []
    kept: list[int] = []
    refused, lost = Faults(), Faults()
    cuts, shortest = Cuts(), 0
    stops_inside: list[Origin] = []
    for start in range(0, len(examples), CHUNK):
        drawn = _draw_chunk(examples[start : start + CHUNK], template, settings, pieces, refused)
        for offset, whole in _trees(examples[start : start + CHUNK], drawn, pieces):
            shortest = min(shortest or longest(whole), longest(whole))
            tree, cut = truncate(whole, settings.max_length, pieces.bos)
            cuts += cut
            try:
                check_learnable(tree, settings.max_length, bool(cut.completions))
            except RowError as fault:
                lost.add(fault)
                continue
            trees.append(tree)
            kept.append(start + offset)
            if _stops_inside(examples[start + offset], tree, settings.loss_on, pieces.end_tokens):
                stops_inside.append(examples[start + offset].origin)
        on_progress(min(start + CHUNK, len(examples)), len(examples))
    return Encoded(tuple(trees), tuple(kept), refused, lost, cuts, shortest, tuple(stops_inside))


def encode_prompts(
    prompts: Sequence[Words], tokenizer: PreTrainedTokenizerBase, template: Template, end_tokens: frozenset[int]
) -> list[list[int]]:
    """Token ids of prompts to be answered, exactly as training would have them in front of an answer."""
    examples = [Prompt(words, {}, Origin("prompt", row)) for row, words in enumerate(prompts, start=1)]
    whole = DataSettings(path="prompt", max_length=UNCUT)
    encoded = encode(examples, tokenizer, template, whole, end_tokens, lambda done, total: None)
    return [tree.prompt.tolist() for tree in encoded.trees]


def draw(example: Example, template: Template, loss_on: LossOn) -> Drawn:
    """Render an example. Raw text is taken as it stands, or wrapped as a user's and an assistant's turn."""
    asked = template.wrap(example.prompt)
    if isinstance(example, Demonstration):
        return _draw_demonstration(asked, example.completion, template, loss_on)
    if isinstance(example, Comparison):
        answers: tuple[Words, ...] = (example.chosen, example.rejected)
    else:
        answers = (example.completion,) if isinstance(example, Judgement) else ()
    if isinstance(asked, str):
        return Drawn(asked, tuple((Part(_raw(answer), True),) for answer in answers))
    if not answers:
        return Drawn(template.render_prompt(asked), ())
    rendered = [_render_answer(asked, as_messages(answer, "assistant"), template) for answer in answers]
    if len({parts[0].text for parts in rendered}) > 1:
        raise TemplateError(f"template '{template.name}' renders a prompt differently for its two answers")
    return Drawn(rendered[0][0].text, tuple(tuple(parts[1:]) for parts in rendered))


def _draw_demonstration(asked: Words, answer: Words, template: Template, loss_on: LossOn) -> Drawn:
    if isinstance(asked, str):
        if loss_on == "all" and asked:
            return Drawn("", ((Part(asked, True), Part(_raw(answer), True)),), first_token_prompts=True)
        return Drawn(asked, ((Part(_raw(answer), True),),))
    turns = (*asked, *as_messages(answer, "assistant"))
    if loss_on == "all":
        return Drawn("", ((Part(template.render(turns), True),),), first_token_prompts=True)
    first = len(asked) if loss_on == "assistant" else len(turns) - 1
    trained = [n for n in range(first, len(turns)) if turns[n].role == "assistant"]
    parts = template.parts(turns, trained)
    return Drawn(parts[0].text, (tuple(parts[1:]),))


def _raw(answer: Words) -> str:
    assert isinstance(answer, str), "a raw prompt has raw answers"
    return answer


def _render_answer(asked: Messages, answer: Messages, template: Template) -> list[Part]:
    turns = (*asked, *answer)
    return template.parts(turns, range(len(asked), len(turns)))


def _check_template(examples: Sequence[Example], template: Template) -> None:
    """Say at once, and without a row, that conversations need a template."""
    if template.source is None and (first := next((e for e in examples if not isinstance(e.prompt, str)), None)):
        template.prompt_text(first.prompt)


def _draw_chunk(
    examples: Sequence[Example], template: Template, settings: DataSettings, pieces: Pieces, refused: Faults
) -> list[Drawn | None]:
    drawn: list[Drawn | None] = []
    for example in examples:
        try:
            found = draw(example, template, settings.loss_on)
        except TemplateError as fault:
            if settings.on_bad_row == "stop" or isinstance(fault, TooCostly):  # the next row would be as costly
                raise TemplateError(f"{example.origin}: {fault}") from None
            refused.add(RowError(example.origin, "the template refused it", str(fault)))
            drawn.append(None)
            continue
        branches = tuple(_end_turns(branch, pieces) for branch in found.branches)
        drawn.append(Drawn(found.prompt, branches, found.first_token_prompts))
    return drawn


def _end_turns(parts: Sequence[Part], pieces: Pieces) -> tuple[Part, ...]:
    """Let each trained turn end with its end token; what a template puts behind it goes to what follows, if any."""
    ended: list[Part] = []
    behind = ""
    for part in parts:
        text = behind + part.text
        behind = ""
        if part.supervised:
            text, behind = pieces.cut_after_end(text)
        ended.append(Part(text, part.supervised))
    return tuple(ended)


def _trees(examples: Sequence[Example], drawn: Sequence[Drawn | None], pieces: Pieces) -> Iterator[tuple[int, Tree]]:
    """Tokenise a chunk in one go and give out each example's ids in turn."""
    todo: list[Piece] = []
    for found in drawn:
        if found is not None:
            todo.append(("", found.prompt))
            for branch in found.branches:
                todo += pieces.of_parts(branch, pieces.continuing if found.prompt else "")
    ids = iter(pieces.tokenise(todo))
    for index, (example, found) in enumerate(zip(examples, drawn, strict=True)):
        if found is not None:
            prompt = next(ids)
            branches = [_completion([next(ids) for _ in parts], parts, pieces) for parts in found.branches]
            yield index, _tree(example, found, prompt, branches, pieces)


def _completion(rows: Sequence[list[int]], parts: Sequence[Part], pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Token ids and mask of a completion; a trained turn without an end token gets one."""
    tokens: list[int] = []
    mask: list[bool] = []
    for n, (ids, part) in enumerate(zip(rows, parts, strict=True)):
        ends_turn = part.supervised and (n + 1 == len(parts) or not parts[n + 1].supervised)
        if ends_turn and (not ids or ids[-1] not in pieces.end_tokens):
            ids = [*ids, pieces.eos]
        tokens += ids
        mask += [part.supervised] * len(ids)
    return tokens, mask


def _tree(
    example: Example, found: Drawn, prompt: list[int], branches: list[tuple[list[int], list[bool]]], pieces: Pieces
) -> Tree:
    if found.first_token_prompts and not pieces.adds_bos:
        first = branches[0][0][:1]
        prompt, branches = first, [_without_start(branches[0], pieces.bos if first == [pieces.bos] else None, 1)]
    elif not prompt:
        prompt = [pieces.eos if pieces.bos is None else pieces.bos]
        branches = [_without_start(branch, prompt[0], 0) for branch in branches]
    elif pieces.adds_bos and pieces.bos is not None:
        prompt = [pieces.bos, *prompt]
    while len(prompt) > 1 and prompt[0] == prompt[1] == pieces.bos:
        prompt = prompt[1:]
    label = example.label if isinstance(example, Judgement) else None
    completions = tuple(
        Completion(np.asarray(tokens, dtype=np.int32), np.asarray(mask, dtype=np.bool_), label)
        for tokens, mask in branches
    )
    asked = np.asarray(prompt, dtype=np.int32)
    if isinstance(example, Comparison):
        margins = () if example.margin is None else (example.margin,)
        return Tree(asked, completions, ((0, 1),), margins, example.origin)
    return Tree(asked, completions, origin=example.origin)


def _without_start(branch: tuple[list[int], list[bool]], token: int | None, skip: int) -> tuple[list[int], list[bool]]:
    """Leave out the first tokens of a text, and those of one kind that follow: a BOS that moves into the prompt."""
    tokens, mask = branch
    start = skip
    while start + 1 < len(tokens) and tokens[start] == token:
        start += 1
    return tokens[start:], mask[start:]


def _stops_inside(example: Example, tree: Tree, loss_on: LossOn, end_tokens: frozenset[int]) -> bool:
    """True where an answer would teach to stop before it is over; plain text may hold several documents."""
    if isinstance(example, Demonstration) and (loss_on == "all" or not example.prompt):
        return False
    ends = np.fromiter(end_tokens, dtype=np.int32)
    return any(bool((np.isin(c.tokens[:-1], ends) & c.mask[:-1] & c.mask[1:]).any()) for c in tree.completions)


def check_learnable(tree: Tree, limit: int, cut: bool) -> None:
    """Raise RowError where nothing can be learned from a tree; `cut` says whether `limit` took from its completions."""
    assert tree.origin is not None
    for completion in tree.completions:
        if not completion.mask.any():
            raise RowError(tree.origin, "nothing left to train", f"no trained token within data.max_length {limit}")
    for chosen, rejected in tree.pairs:
        tokens = tree.completions[chosen].tokens
        if np.array_equal(tokens, tree.completions[rejected].tokens):
            if not cut:
                raise RowError(tree.origin, "identical answers", "'chosen' and 'rejected' become the same tokens")
            raise RowError(
                tree.origin,
                "identical after truncation",
                f"'chosen' and 'rejected' are identical in the first {len(tokens)} tokens; raise data.max_length",
            )
