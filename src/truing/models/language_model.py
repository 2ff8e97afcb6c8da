"""A transformers model that takes batches of trees and returns log-probs of their targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from truing.core.batch import Batch, Layout, Outputs, Span, TreeSpans, collate
from truing.core.errors import InputError, ModelError
from truing.core.trees import IntArray, Tree
from truing.models.attention import NAME, register
from truing.models.folder import quiet_transformers
from truing.models.growth import Growth
from truing.models.heads import output_head
from truing.models.kv_cache import Cache
from truing.models.loading import SCORE
from truing.models.logprobs import chunk_rows, linear_logprobs, logits_logprobs, whole_logprobs
from truing.models.next_token import NextTokens
from truing.models.tree_plan import TreePlan, longest_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sharing = Literal["tree", "packed", "alone"]
"""How sequences share a forward pass: prompts computed once; end to end with a prompt each; one at a time."""

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary variants whose angles for *all* tokens change once the longest sequence passes the original context."""


class LanguageModel:
    """A causal language model, run on trees.

    Two ways of sharing run under tree attention; `alone` runs each sequence by itself under the model's own attention,
    which is exact for every causal model and slow. Whoever builds one asks `selfcheck` which to use.
    """

    def __init__(self, module: PreTrainedModel, *, sharing: Sharing = "tree") -> None:
        register()
        self.module = module
        self.sharing: Sharing = sharing
        self.stock = stock_attention(module)
        """The attention that transformers itself would have taken."""
        self._body = module.base_model
        if self._body is module:
            raise ModelError(f"{type(module).__name__} has no body apart from its head; truing trains causal models")
        self._limit = _exact_length(module)
        self.windows: set[int] = set()
        """Sliding windows that layers have asked tree attention for."""
        self.refused: set[str] = set()
        """Why kernels that take a whole batch were not used."""
        self.door: nn.Module | None = None
        """The module whose forward pass every computation runs in, where the weights are cut over devices."""
        set_attention(module, self.stock if sharing == "alone" else NAME)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return torch.device(self.module.device)

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: every token id must be smaller."""
        return int(self.module.get_input_embeddings().weight.shape[0])

    @property
    def scores(self) -> bool:
        """Whether this is a reward model, with a score head in place of one over the vocabulary."""
        return self.module.get_output_embeddings() is None and hasattr(self.module, SCORE)

    @property
    def caches(self) -> bool:
        """Whether completions can be written over kept keys and values; otherwise transformers has to do it."""
        return self.sharing == "tree" and not self.scores

    @property
    def exact_length(self) -> int | None:
        """Tokens of a sequence up to which its positions mean the same whatever else is computed with it."""
        return self._limit

    @property
    def max_positions(self) -> int | None:
        """Tokens of context that the model was made for; None where its configuration names no limit."""
        values = vars(self.module.config.get_text_config())
        # GPT-2 once wrote n_positions and transformers maps it, so that one name covers the families.
        limit = values.get("max_position_embeddings", values.get("n_positions"))
        return None if limit is None else int(limit)

    def collate(self, trees: Sequence[Tree]) -> Batch:
        """Lay trees out in the way this model can compute, on its device."""
        return self.lay_out(trees).to(self.device)

    def lay_out(self, trees: Sequence[Tree]) -> Batch:
        """Return the same on the CPU."""
        return collate(trees, share_prompts=self.sharing == "tree")

    def outputs(
        self, batch: Batch, *, entropy: bool = False, squares: bool = False, temperature: float = 1.0
    ) -> Outputs:
        """Log-probs of the batch's targets, and where asked for their distributions' entropy and log Σ p²: float32 [K].

        All are those of the distribution at `temperature`. A reward model gives a score for each completion instead.
        """
        if self.scores:
            return Outputs(torch.zeros(0, device=self.device), scores=self.completion_scores(batch))
        self._refuse_foreign(batch)
        return Outputs(*self._run(self._predicted, batch, entropy, squares, temperature))

    def completion_scores(self, batch: Batch) -> Tensor:
        """What the score head says of each completion at its last token: float32 [C]."""
        self._refuse_foreign(batch)
        scores: Tensor = self._run(self._scored, batch, batch.ends, [1] * batch.num_completions)
        return scores

    def token_values(self, batch: Batch) -> Tensor:
        """What the score head says before each target token, where it is predicted: float32 [K]."""
        self._refuse_foreign(batch)
        values: Tensor = self._run(self._scored, batch, batch.predictors, batch.target_counts)
        return values

    @torch.no_grad()
    def with_distributions(self, batch: Batch, chosen: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """Log-probs of the batch's targets, float32 [K], and of the whole vocabulary where some of them are predicted.

        `chosen`, int64 [n], are indices into K. Their distributions come in that order, a few rows at a time, float32
        [k, V], and without gradient; they are computed as they are asked for.
        """
        self._refuse_foreign(batch)
        hidden = self._hidden(batch, batch.predictors, batch.target_counts)
        logprobs = self._read_out(hidden, batch.targets, entropy=False, squares=False, temperature=1.0).logprobs
        return logprobs, self._distributions(hidden[chosen])

    def prompt_states(self, prompts: Sequence[IntArray]) -> Tensor:
        """Mean of the last hidden states over the tokens of each prompt: int32 [p] each → float32 [N, d]."""
        batch = collate([Tree(prompt, ()) for prompt in prompts]).to(self.device)
        spans = [tree.prompt for tree in batch.layout.trees]
        longest = max((span.size for span in spans), default=0)
        if self.sharing == "alone" or (self._limit is not None and longest > self._limit):
            pieces = [batch.tokens[span.start : span.stop] for span in spans]
            states = [self.body(p, torch.arange(len(p), device=p.device), self._single(p)) for p in pieces]
        else:
            hidden = self.body(batch.tokens, batch.positions, TreePlan(batch.layout))
            states = [hidden[span.start : span.stop] for span in spans]
        return torch.stack([part.float().mean(dim=0) for part in states])

    def enable_checkpointing(self, contexts: Callable[[], tuple[Any, Any]] | None = None) -> None:
        """Keep only layer inputs and recompute the rest in the backward pass.

        `contexts` gives the contexts of a forward pass and of its recomputation, which needs the same adapter.
        Layers do so in training mode only, so this also puts the model into it.
        """
        how: dict[str, Any] = {"use_reentrant": False} | ({"context_fn": contexts} if contexts is not None else {})
        with warnings.catch_warnings():
            # Newer transformers have another name for it and say so; the oldest supported one has only this.
            warnings.simplefilter("ignore", FutureWarning)
            self.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        self.module.train()

    def enter_by(self, door: nn.Module) -> None:
        """Compute inside this module's forward pass from now on."""
        self.door = door

    def weights(self) -> dict[str, Tensor]:
        """All parameters and buffers by the names they have in a model folder, without any adapter in place."""
        from truing.models.lora.layers import AdaptedLinear

        adapted = [name for name, part in self.module.named_modules() if isinstance(part, AdaptedLinear)]
        foreign = tuple(f"{name}.adapters." for name in adapted)
        # A score head beside the vocabulary's serves a critic, and is no part of the model.
        heads = () if self.scores else (f"{SCORE}.",)
        state = self.module.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if not name.startswith((*foreign, *heads))}

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write weights (by default those of `weights`) and configuration as a model folder.

        The configuration names no attention of ours.
        """
        state = {name: value.detach() for name, value in (self.weights() if weights is None else weights).items()}
        with self.stock_attention() as module, quiet_transformers():
            module.save_pretrained(folder, state_dict=state)

    @contextmanager
    def stock_attention(self) -> Iterator[PreTrainedModel]:
        """Give the module with the attention transformers itself would use, for generation; then put the other back."""
        before = self.module.config._attn_implementation
        set_attention(self.module, self.stock)
        try:
            yield self.module
        finally:
            set_attention(self.module, before)

    def _run(self, compute: Callable[..., Any], *args: Any) -> Any:
        return compute(*args) if self.door is None else self.door(compute, *args)

    def _predicted(self, batch: Batch, entropy: bool, squares: bool, temperature: float) -> tuple[Tensor | None, ...]:
        """Log-probs, entropies and log Σ p² of the targets: float32 [K] each, the last two where asked for."""
        hidden = self._hidden(batch, batch.predictors, batch.target_counts)
        found = self._read_out(hidden, batch.targets, entropy, squares, temperature)
        return found.logprobs, found.entropy, found.log_squares

    def _scored(self, batch: Batch, places: Tensor, counts: Sequence[int]) -> Tensor:
        """What the score head says at some places of the token axis: float32 [N]."""
        return self.score_hidden(self._hidden(batch, places, counts))

    def _read_out(self, hidden: Tensor, targets: Tensor, entropy: bool, squares: bool, temperature: float) -> Outputs:
        head = output_head(self.module)
        if head.plain:
            found = linear_logprobs(
                hidden,
                head.weight,
                targets,
                bias=head.bias,
                scale=head.scale,
                softcap=head.softcap,
                temperature=temperature,
                entropy=entropy,
                squares=squares,
            )
            return Outputs(*found)

        def read(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return logits_logprobs(
                head.module(rows), wanted, scale=head.scale, softcap=head.softcap, temperature=temperature
            )

        rows = chunk_rows(self.vocab_size, self.device)
        parts = [
            checkpoint(read, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        ]
        logprobs, entropies, log_squares = (torch.cat(column) for column in zip(*parts, strict=True))
        return Outputs(logprobs, entropies if entropy else None, log_squares if squares else None)

    @torch.no_grad()
    def _distributions(self, hidden: Tensor) -> Iterator[Tensor]:
        head = output_head(self.module)
        for rows in torch.split(hidden, chunk_rows(self.vocab_size, self.device)) if len(hidden) else ():
            yield whole_logprobs(head.module(rows.to(head.weight.dtype)), scale=head.scale, softcap=head.softcap)

    def body(self, tokens: Tensor, positions: Tensor, plan: TreePlan | Cache | None) -> Tensor:
        """Last hidden states of one row of tokens, int64 [T] → [T, d]. Without a plan the model attends its own way."""
        extra: dict[str, Any] = {}
        if plan is not None:
            extra = {"position_ids": positions[None], "tree_layout": plan}
        hidden = self._body(input_ids=tokens[None], use_cache=False, **extra).last_hidden_state
        assert isinstance(hidden, Tensor)
        if isinstance(plan, TreePlan):
            self.windows |= plan.windows
            self.refused |= plan.refused
        return hidden[0]

    def grow(self, tokens: Tensor, growth: Growth) -> Tensor:
        """Last hidden states of R rows that grow the same n nodes, int64 [R, n] → [R, n, d]."""
        extra: dict[str, Any] = {"position_ids": growth.positions, "tree_layout": growth}
        hidden = self._body(input_ids=tokens, use_cache=False, **extra).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def next_tokens(self) -> NextTokens:
        """What gives the log-probs of every next token, with the weights as they are now."""
        return NextTokens(output_head(self.module))

    def score_hidden(self, hidden: Tensor) -> Tensor:
        """Scores from last hidden states: [N, d] → float32 [N]."""
        head = self.module.get_submodule(SCORE)
        scores: Tensor = head(hidden.to(next(head.parameters()).dtype)).float().squeeze(-1)
        return scores

    def _hidden(self, batch: Batch, places: Tensor, counts: Sequence[int]) -> Tensor:
        """Last hidden states at some places of the token axis, of which each completion has a count: [N, d]."""
        longest = max((longest_path(tree) for tree in batch.layout.trees), default=0)
        if self.sharing == "alone" or (self._limit is not None and longest > self._limit):
            return self._hidden_alone(batch, places, counts)
        return self.body(batch.tokens, batch.positions, TreePlan(batch.layout))[places]

    def _hidden_alone(self, batch: Batch, places: Tensor, numbers: Sequence[int]) -> Tensor:
        """The same, each completion run by itself behind its prompt."""
        parts: list[Tensor] = []
        done = 0
        counts = iter(numbers)
        for tree in batch.layout.trees:
            for span in tree.completions:
                count = next(counts)
                prompt = tree.prompt
                where = places[done : done + count]
                done += count
                if count == 0:
                    continue
                tokens = torch.cat([batch.tokens[prompt.start : prompt.stop], batch.tokens[span.start : span.stop]])
                own = torch.where(where < prompt.stop, where - prompt.start, where - span.start + prompt.size)
                hidden = self.body(tokens, torch.arange(len(tokens), device=tokens.device), self._single(tokens))
                parts.append(hidden[own])
        return torch.cat(parts) if parts else self._no_hidden()

    def _single(self, tokens: Tensor) -> TreePlan | None:
        if self.sharing == "alone":
            return None
        return TreePlan(Layout((TreeSpans(Span(0, len(tokens)), ()),), len(tokens)))

    def _no_hidden(self) -> Tensor:
        width = int(self.module.config.get_text_config().hidden_size)
        return torch.zeros(0, width, dtype=self.module.dtype, device=self.device)

    def _refuse_foreign(self, batch: Batch) -> None:
        if self.sharing == "packed" and any(len(tree.completions) > 1 for tree in batch.layout.trees):
            raise InputError("the batch shares prompts, which this model cannot compute; make it with model.collate")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of a model into evaluation mode, then each back into the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def stock_attention(module: PreTrainedModel) -> str:
    """The attention implementation that transformers itself picks for this model."""
    current = str(module.config._attn_implementation)
    if current != NAME:
        return current
    return str(module.get_correct_attn_implementation(None))


def set_attention(module: PreTrainedModel, name: str) -> None:
    """Set the attention implementation of the model and its parts.

    Raises ModelError for a model that does not let transformers replace its attention.
    """
    if module.config._attn_implementation == name:
        return
    if not module._can_set_attn_implementation():
        raise ModelError(f"{type(module).__name__} does not let its attention be replaced")
    module.set_attn_implementation(name)


def _exact_length(module: PreTrainedModel) -> int | None:
    """Tokens up to which rotary angles do not depend on what else is in the batch; None where they never do."""
    config = module.config.get_text_config()
    rope = vars(config).get("rope_parameters") or {}
    if rope.get("rope_type") not in LENGTH_DEPENDENT_ROPE:
        return None
    original = rope.get("original_max_position_embeddings") or vars(config).get("original_max_position_embeddings")
    return int(original or config.max_position_embeddings)
