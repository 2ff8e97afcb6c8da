"""Whether what a stage has written answers as what it has trained: read back, merged, and in bfloat16.

The trained policy writes greedy answers to a few prompts through the code that training ran. What was saved then reads
them through transformers' own attention, as a server does, and predicts each of their tokens. An adapter over a 4-bit
base is read back over that base; over the original one it is off by the error of four bits, which is told and is no
complaint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.build.policy import POLICY, BuiltPolicy
from truing.core.trees import Completion, Tree
from truing.data.templates import Template
from truing.models.decoding import Choice
from truing.models.language_model import LanguageModel, evaluating
from truing.models.loading import end_tokens, load_model, load_tokenizer
from truing.models.lora.adapters import Adapters
from truing.models.lora.merge import TOLERANCES, previewed
from truing.models.lora.peft_config import CONFIG_FILE
from truing.models.lora.peft_format import load_adapter
from truing.models.nf4 import unpacked_bytes
from truing.models.sampling import sample
from truing.planner.machine import this_cpu
from truing.training.progress import resident_bytes

FILE = "parity.json"
PROMPTS, NEW_TOKENS = 4, 16
SPARE = 2
"""How many times the bytes of the original base have to be free before it is loaded for a comparison."""
ROUNDING = 10.0
"""How much further a stock attention may be off than a merge, which changes nothing but the last digits."""
SAVED = "saved"
"""Name of the adapter that is read back."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a form of the result differs from the trained policy."""

    form: str
    """saved, merged, bfloat16 or unquantised base."""
    largest: float
    """Between the log-probs of any token of the vocabulary, nats; of a reward model between scores."""
    agreement: float | None
    """Share of the places where both have the same likeliest token; None for a reward model."""

    @property
    def sentence(self) -> str:
        """The figures for a person."""
        same = "" if self.agreement is None else f", {self.agreement:.1%} of greedy tokens the same"
        return f"{self.form} {self.largest:.2g}{same}"


@dataclass(frozen=True, slots=True)
class Parity:
    """What was found, and what it was found on, so that it can be found again."""

    dtype: str
    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]
    """Greedy answers, or for a reward model those of the data."""
    figures: tuple[float, ...]
    """What the saved result gives each token of the completions, nats; of a reward model each completion's score."""
    differences: tuple[Difference, ...]
    complaint: str | None
    """What is not as it was trained, beyond rounding."""

    @property
    def sentence(self) -> str:
        """One line for a person."""
        told = "; ".join(difference.sentence for difference in self.differences)
        return f"as served, the largest difference from what was trained: {told}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(built: BuiltPolicy, template: Template, trees: Sequence[Tree], folder: Path) -> Parity | None:
    """Compare the trained policy with what was saved in a folder; None where no prompt leaves room for an answer.

    An adapter is left merged into its base, which is left in bfloat16: nothing is held twice, and nothing more is done
    with it.
    """
    complaint = _other_tokenizer(built, template, folder)
    asked = _answered(built, trees)
    if not asked:
        return None
    with _as(built, POLICY), torch.no_grad(), evaluating(built.model.module):
        trained = _trained(built.model, asked)
    forms = _adapter_forms if built.adapters is not None else _whole_forms
    if built.adapters is not None and built.company.cuts:
        forms = _adapter_forms_apart
    differences = []
    figures: tuple[float, ...] = ()
    for form, served in forms(built, folder):
        found = served_predictions(served, asked)
        figures = figures or figures_of(found, asked, scores=served.scores)
        differences.append(_difference(form, trained, found))
    return Parity(
        str(built.dtype).removeprefix("torch."),
        tuple(tuple(tree.prompt.tolist()) for tree in asked),
        tuple(tuple(tree.completions[0].tokens.tolist()) for tree in asked),
        figures,
        tuple(differences),
        complaint or _too_far(differences[0], _tolerance(built, trained)),
    )


def served_predictions(model: LanguageModel, trees: Sequence[Tree]) -> Tensor:
    """Log-probs of the vocabulary before each token of the completions, through transformers alone: float32 [K, V].

    Of a reward model the scores of the completions, float32 [C, 1].
    """
    found = []
    with torch.no_grad(), model.stock_attention() as module, evaluating(module):
        for tree in trees:
            answer = tree.completions[0].tokens
            tokens = torch.from_numpy(np.concatenate([tree.prompt, answer]).astype(np.int64))
            logits = module(input_ids=tokens[None].to(model.device), use_cache=False).logits[0].float().cpu()
            if model.scores:
                found.append(logits.reshape(1, 1))
            else:
                start = len(tree.prompt) - 1
                found.append(logits[start : start + len(answer)].log_softmax(dim=-1))
    return torch.cat(found)


def figures_of(predictions: Tensor, trees: Sequence[Tree], *, scores: bool) -> tuple[float, ...]:
    """What is predicted for the completions' own tokens, or their scores."""
    if scores:
        return tuple(predictions[:, 0].tolist())
    targets = torch.from_numpy(np.concatenate([tree.completions[0].tokens for tree in trees]).astype(np.int64))
    return tuple(predictions.gather(1, targets[:, None])[:, 0].tolist())


def tolerance(dtype: torch.dtype, figures: Tensor) -> float:
    """The largest difference that rounding explains: in another attention, with sums in another order."""
    return ROUNDING * TOLERANCES[dtype] * max(1.0, float(figures.abs().max()))


def _trained(model: LanguageModel, trees: Sequence[Tree]) -> Tensor:
    """The same as `served_predictions`, by the code that training runs."""
    batch = model.collate(trees)
    if model.scores:
        return model.completion_scores(batch)[:, None].float().cpu()
    _, rows = model.with_distributions(batch, torch.arange(batch.num_targets, device=model.device))
    return torch.cat([row.cpu() for row in rows])


def _answered(built: BuiltPolicy, trees: Sequence[Tree]) -> list[Tree]:
    """Some prompts, with the answers that figures are compared on."""
    model = built.model
    if model.scores:
        return [_tree(tree.prompt.tolist(), tree.completions[0].tokens.tolist()) for tree in trees[:PROMPTS]]
    room = (model.max_positions or 1 << 30) - NEW_TOKENS
    prompts = [tree.prompt.tolist() for tree in trees if len(tree.prompt) <= room][:PROMPTS]
    with _as(built, POLICY):
        written = sample(
            model, prompts, max_new_tokens=NEW_TOKENS, choice=Choice(0.0), seed=0, end_tokens=built.loaded.end_tokens
        )
    return [_tree(prompt, rows[0].tokens.tolist()) for prompt, rows in zip(prompts, written, strict=True)]


def _tree(prompt: Sequence[int], answer: Sequence[int]) -> Tree:
    tokens = np.asarray(answer, dtype=np.int32)
    return Tree(np.asarray(prompt, dtype=np.int32), (Completion(tokens, np.ones(len(tokens), dtype=np.bool_)),))


def _adapter_forms(built: BuiltPolicy, folder: Path) -> Iterator[tuple[str, LanguageModel]]:
    """The adapter read back over the base that it was trained on, then merged, then all in bfloat16."""
    adapters = built.adapters
    assert adapters is not None
    load_adapter(adapters, SAVED, folder)
    with adapters.use(SAVED):
        yield SAVED, built.model
        if built.loaded.storage is not None:
            yield from _packed_forms(built, adapters, folder)
            return
    for other in adapters.names:
        if other != SAVED:
            adapters.remove(other)
    adapters.merge(SAVED)
    yield "merged", built.model
    if built.dtype != torch.bfloat16:
        built.model.module.to(torch.bfloat16)
        yield "bfloat16", built.model


def _adapter_forms_apart(built: BuiltPolicy, folder: Path) -> Iterator[tuple[str, LanguageModel]]:
    """The same over a base that is read again, where that in memory is cut over ranks and has to stay as it is."""
    base = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    loaded = load_model(base, dtype=built.dtype, device=built.device, scores=built.model.scores)
    model = LanguageModel(loaded.module, sharing=built.model.sharing)
    adapters = Adapters(loaded.module)
    load_adapter(adapters, SAVED, folder)
    adapters.switch(SAVED)
    yield SAVED, model
    adapters.merge(SAVED)
    yield "merged", model
    if built.dtype != torch.bfloat16:
        loaded.module.to(torch.bfloat16)
        yield "bfloat16", model


def _packed_forms(built: BuiltPolicy, adapters: Adapters, folder: Path) -> Iterator[tuple[str, LanguageModel]]:
    """The adapter merged into what it was trained over, a layer at a time, and over the base as its files have it.

    The latter where there is room for it: whoever packs a base may have none.
    """
    with previewed(adapters, SAVED):
        yield "merged", built.model
    if SPARE * unpacked_bytes(built.model.module) > _free_bytes(built.device):
        return
    original = load_model(built.start.model, dtype=built.dtype, device=built.device, scores=built.model.scores)
    model = LanguageModel(original.module, sharing=built.model.sharing)
    over = Adapters(original.module)
    load_adapter(over, SAVED, folder)
    over.switch(SAVED)
    yield "unquantised base", model


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return this_cpu().memory - (resident_bytes() or 0)


def _whole_forms(built: BuiltPolicy, folder: Path) -> Iterator[tuple[str, LanguageModel]]:
    """The model read back, then in bfloat16."""
    loaded = load_model(folder, dtype=built.dtype, device=built.device, scores=built.model.scores)
    model = LanguageModel(loaded.module, sharing=built.model.sharing)
    yield SAVED, model
    if built.dtype != torch.bfloat16:
        loaded.module.to(torch.bfloat16)
        yield "bfloat16", model


def _as(built: BuiltPolicy, name: str) -> AbstractContextManager[None]:
    return nullcontext() if built.adapters is None else built.adapters.use(name)


def _difference(form: str, trained: Tensor, found: Tensor) -> Difference:
    agreement = None
    if trained.shape[1] > 1:
        agreement = float((trained.argmax(dim=1) == found.argmax(dim=1)).double().mean())
    return Difference(form, float((trained - found).abs().max()), agreement)


def _tolerance(built: BuiltPolicy, trained: Tensor) -> float:
    exact = built.calibration.matmul_precision == "highest"
    return tolerance(built.dtype if exact else torch.bfloat16, trained)


def _too_far(difference: Difference, allowed: float) -> str | None:
    if difference.largest <= allowed:  # written so that a NaN is too far
        return None
    return (
        f"it does not answer as what was trained: log-probs or scores differ by {difference.largest:.3g}, and rounding "
        f"explains {allowed:.3g}"
    )


def _other_tokenizer(built: BuiltPolicy, template: Template, folder: Path) -> str | None:
    """What of the saved tokenizer is not as in training."""
    trained, saved = built.loaded.tokenizer, load_tokenizer(folder)
    for what, same in (
        ("chat template", saved.chat_template == (template.source or trained.chat_template)),
        ("stop tokens", end_tokens(saved, built.model.module) == built.loaded.end_tokens),
        ("vocabulary", saved.get_vocab() == trained.get_vocab()),
    ):
        if not same:
            return f"its tokenizer has not the {what} that training used"
    return None
