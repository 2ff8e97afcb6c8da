"""What becomes of the rows with a model's tokenizer and template: encoded as for training, then looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from truing.audit.finding import EXAMPLES, Finding, Level, cleaning, graded, percent, shorten
from truing.audit.material import PARTS, Material
from truing.core.errors import TemplateError
from truing.core.trees import IntArray, Tree
from truing.data.decoded import DecodedRow, decoded
from truing.data.encoding import CHUNK, UNCUT, check_learnable, draw, encode
from truing.data.examples import Example, Prompt, Role
from truing.data.faults import RowError, counted
from truing.data.settings import DataSettings
from truing.data.templates import REMEDY, Template
from truing.data.tokens import Pieces
from truing.data.truncation import truncate

if TYPE_CHECKING:
    from truing.models.loading import Outline

CUT_WARN, CUT_STRONG = 0.01, 0.05
"""An answer that is cut teaches no ending; above 5 % the limit does not fit the data."""

SHOWN = 300
"""Characters of each part of a row that is shown."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How rows are encoded."""

    outline: Outline
    template: Template
    pieces: Pieces
    max_length: int

    @property
    def end_names(self) -> str:
        """The tokens that end an answer, as the tokenizer writes them."""
        tokens = sorted(self.pieces.end_tokens)
        return " or ".join(str(self.outline.tokenizer.convert_ids_to_tokens(token)) for token in tokens)


@dataclass(slots=True)
class Measured:
    """What was seen while all rows were encoded; lists hold indices of examples."""

    lengths: npt.NDArray[np.int64]  # int64 [E, PARTS], tokens before any cut; 0 where a row could not be encoded
    refused: list[RowError] = field(default_factory=list)
    untrained: list[RowError] = field(default_factory=list)
    identical: list[RowError] = field(default_factory=list)
    wrong_bos: list[int] = field(default_factory=list)
    endless: list[int] = field(default_factory=list)
    stops_inside: list[int] = field(default_factory=list)
    cut_prompts: list[int] = field(default_factory=list)
    cut_completions: list[int] = field(default_factory=list)
    encoded: int = 0
    shown: list[DecodedRow] = field(default_factory=list)


def measure(
    material: Material, encoding: Encoding, show: int, on_progress: Callable[[int, int], None]
) -> Measured | Finding:
    """Encode all rows, a chunk at a time; a Finding where the template cannot render any."""
    tokenizer, ends = encoding.outline.tokenizer, encoding.pieces.end_tokens
    whole = DataSettings(path="data", max_length=UNCUT, on_bad_row="drop")
    found = Measured(np.zeros((len(material.examples), PARTS), dtype=np.int64))
    for start in range(0, len(material.examples), CHUNK):
        chunk = material.examples[start : start + CHUNK]
        try:
            encoded = encode(chunk, tokenizer, encoding.template, whole, ends, lambda done, total: None)
        except TemplateError as fault:
            return Finding("template", "stop", str(fault), REMEDY)
        found.refused += encoded.refused.rows
        for lost in encoded.lost.rows:
            (found.identical if lost.reason.startswith("identical") else found.untrained).append(lost)
        inside = set(encoded.stops_inside)
        for offset, tree in zip(encoded.kept, encoded.trees, strict=True):
            _look(found, start + offset, tree, encoding)
            if tree.origin in inside:
                found.stops_inside.append(start + offset)
            if len(found.shown) < show:
                found.shown.append(decoded(tree, tokenizer.decode, SHOWN))
        found.encoded += len(encoded.trees)
        on_progress(min(start + CHUNK, len(material.examples)), len(material.examples))
    return found


def encoded_findings(material: Material, found: Measured, encoding: Encoding) -> list[Finding]:
    """The checks `template` to `identical_after_cut`."""
    findings = [
        _template(material, found, encoding),
        _bos(material, found, encoding),
        _end_token(material, found, encoding),
        _of_faults("no_target", found.untrained, "without a token to train on", "every row has tokens to train on"),
        _cut(material, found, encoding),
        _of_faults(
            "identical_after_cut",
            found.identical,
            "whose answers are the same within the limit",
            "all pairs differ within the limit",
        ),
    ]
    return [finding for finding in findings if found.encoded or finding.level != "ok"]


def _look(found: Measured, index: int, tree: Tree, encoding: Encoding) -> None:
    """Look at one whole tree, and at what the limit leaves of it."""
    pieces, limit = encoding.pieces, encoding.max_length
    found.lengths[index, 0] = len(tree.prompt)
    for place, completion in enumerate(tree.completions):
        found.lengths[index, 1 + place] = len(completion.tokens)
        trained = completion.tokens[completion.mask]
        if not len(trained) or int(trained[-1]) not in pieces.end_tokens:
            found.endless.append(index)
    if not _starts_once(tree, pieces):
        found.wrong_bos.append(index)
    tree, cuts = truncate(tree, limit, pieces.bos)
    if cuts.prompts:
        found.cut_prompts.append(index)
    if cuts.completions:
        found.cut_completions.append(index)
    try:
        check_learnable(tree, limit, bool(cuts.completions))
    except RowError as fault:
        (found.identical if fault.reason.startswith("identical") else found.untrained).append(fault)


def _starts_once(tree: Tree, pieces: Pieces) -> bool:
    """True where the BOS stands at the start if the tokenizer puts one there, and nowhere else."""
    if pieces.bos is None:
        return True
    at_start = int(tree.prompt[0]) == pieces.bos
    later = [tree.prompt[1:], *(completion.tokens for completion in tree.completions)]
    if pieces.bos in pieces.end_tokens:  # one token for both: it also ends answers
        later = [tree.prompt[1:2]]
    return (at_start or not pieces.adds_bos) and not any(_holds(tokens, pieces.bos) for tokens in later)


def _holds(tokens: IntArray, token: int) -> bool:
    return bool((tokens == token).any())


def _template(material: Material, found: Measured, encoding: Encoding) -> Finding:
    if found.refused:
        return _of_faults("template", found.refused, "refused by the template", "", REMEDY)
    template = encoding.template
    silenced = _silenced(material, template)
    if silenced:
        roles = ", ".join(sorted({role for _, role in silenced}))
        indices = sorted({index for index, _ in silenced})
        return Finding(
            "template",
            "strong",
            f"template '{template.name}' does not write all that is said: turns of {roles} are missing or changed in "
            "the text that is trained on",
            REMEDY,
            material.rows(indices),
            material.quotes(indices),
        )
    raw = sum(isinstance(example.prompt, str) for example in material.examples)
    if template.source is None or (raw == len(material.examples) and not template.wraps_text):
        told = "raw text is used as it stands, without a template"
    else:
        told = f"template '{template.name}'"
        if raw and not template.wraps_text:
            told += f"; raw text as it stands in {counted(raw, 'row')}"
    return Finding("template", "ok", told)


def _silenced(material: Material, template: Template) -> list[tuple[int, Role]]:
    """Turns whose words are not in the rendered text, as (example, role), in one example for each order of roles."""
    seen: set[tuple[Role, ...]] = set()
    found = []
    for index, example in enumerate(material.examples):
        asked = template.wrap(example.prompt)
        if isinstance(asked, str) or (roles := tuple(turn.role for turn in asked)) in seen:
            continue
        seen.add(roles)
        try:
            text = template.render_prompt(asked)
        except TemplateError:  # counted as refused
            continue
        found += [(index, turn.role) for turn in asked if turn.content.strip() not in text]
    return found


def _bos(material: Material, found: Measured, encoding: Encoding) -> Finding:
    if not found.wrong_bos:
        told = "every row begins with one BOS token" if encoding.pieces.adds_bos else "texts begin without BOS"
        return Finding("bos", "ok", told)
    rows = material.rows(found.wrong_bos)
    return Finding(
        "bos",
        "stop",
        f"{counted(len(rows), 'row')} ({percent(material.share(found.wrong_bos))}) without exactly one BOS token "
        f"'{encoding.outline.tokenizer.bos_token}' at their start",
        "take the token out of the texts, or out of the template: it is added to every row",
        rows,
        material.quotes(found.wrong_bos),
        {"share": material.share(found.wrong_bos)},
    )


def _end_token(material: Material, found: Measured, encoding: Encoding) -> Finding:
    if found.endless:
        level: Level = "stop"
        told = "that end without a trained end token, so that answers never learn to stop"
        indices = found.endless
    elif found.stops_inside:
        level = "warn"
        told = f"with an end token ({encoding.end_names}) inside an answer, which teaches to stop there"
        indices = found.stops_inside
    else:
        if (first := _first_rendered(material.examples, encoding.template)) is not None and not _ends_itself(
            first, encoding
        ):
            return Finding(
                "end_token",
                "warn",
                f"template '{encoding.template.name}' ends no answer with an end token ({encoding.end_names}); "
                "training adds one, but whatever else renders these conversations does not",
                "name a template that fits the model with --template, or its own by leaving that out",
            )
        return Finding("end_token", "ok", f"every answer is trained to end with {encoding.end_names}")
    rows = material.rows(indices)
    share = material.share(indices)
    sentence = f"{counted(len(rows), 'row')} ({percent(share)}) {told}"
    return Finding(
        "end_token",
        level,
        sentence,
        "take the end token out of the texts; every answer gets one",
        rows,
        material.quotes(indices),
        {"share": share},
    )


def _first_rendered(examples: Sequence[Example], template: Template) -> Example | None:
    """The first example that the template renders with an answer."""
    rendered = (e for e in examples if not isinstance(e, Prompt) and not isinstance(template.wrap(e.prompt), str))
    return next(rendered, None)


def _ends_itself(example: Example, encoding: Encoding) -> bool:
    """True where the template writes an end token behind an answer."""
    pieces = encoding.pieces
    try:
        branch = draw(example, encoding.template, "assistant").branches[0]
    except TemplateError:  # counted as refused
        return True
    last = next(part.text for part in reversed(branch) if part.supervised)
    return pieces.has_end(pieces.cut_after_end(last)[0])


def _cut(material: Material, found: Measured, encoding: Encoding) -> Finding:
    limit = encoding.max_length
    prompts, completions = material.share(found.cut_prompts), material.share(found.cut_completions)
    worst = max(prompts, completions)
    level = graded(worst, CUT_WARN, CUT_STRONG)
    longest = found.lengths[:, 0] + found.lengths[:, 1:].max(axis=1)
    figures = {"prompts": prompts, "completions": completions, "share": worst, "longest": float(longest.max())}
    if not worst:
        return Finding("cut", "ok", f"nothing is cut by {limit:,} tokens", figures=figures)
    told = (
        f"{limit:,} tokens cut the completions of {counted(len(material.rows(found.cut_completions)), 'row')} "
        f"({percent(completions)}) and the prompts of {len(material.rows(found.cut_prompts)):,} ({percent(prompts)})"
    )
    positions = encoding.outline.max_positions
    if positions == limit:
        told += f"; the model has no more than {positions:,} positions"
    indices = sorted({*found.cut_prompts, *found.cut_completions})
    return Finding(
        "cut",
        level,
        told,
        "" if level == "ok" else "; ".join(_lengths_to_set(longest, limit, positions)),
        material.rows(indices),
        material.quotes(indices),
        figures,
    )


def _lengths_to_set(longest: npt.NDArray[np.int64], limit: int, positions: int | None) -> Iterator[str]:
    """What data.max_length would cut 1 % of the rows, and none; within what the model can take."""
    most, all_of_it = int(np.quantile(longest, 1 - CUT_WARN, method="higher")), int(longest.max())
    if positions is not None and positions < all_of_it:
        yield f"shorten or split the longest texts, or take a model with {all_of_it:,} positions"
    if limit < most < min(all_of_it, positions or all_of_it):
        yield f"data.max_length: {most} cuts {percent(CUT_WARN)} of the rows"
    if positions is None or all_of_it <= positions:
        yield f"data.max_length: {all_of_it} cuts none"


def _of_faults(check: str, faults: Sequence[RowError], bad: str, good: str, remedy: str = "") -> Finding:
    if not faults:
        return Finding(check, "ok", good)
    rows = tuple(fault.origin for fault in faults)
    return Finding(
        check,
        "stop",
        f"{counted(len(rows), 'row')} {bad}",
        remedy or f"raise data.max_length, or {cleaning(rows)}",
        rows,
        tuple(shorten(str(fault), 200) for fault in faults[:EXAMPLES]),
        {"count": len(rows)},
    )
