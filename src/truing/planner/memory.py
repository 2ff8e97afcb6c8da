"""Bytes by what they are for, at the moment of a step when there are most of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from truing.models.lora.settings import AdapterSettings
from truing.planner.activations import (
    WIDE,
    Formats,
    Kept,
    input_is_kept,
    kept_by_last_norm,
    kept_of_layer,
    kept_outside,
    not_kept_at_the_bottom,
)
from truing.planner.architecture import SCORE, Architecture
from truing.planner.setting import Micro, Setting, Work

BYTES = {"fp32": 4.0, "bf16": 2.0}
"""Of a stored weight."""

NF4 = 0.516
"""Bytes of a packed weight: half a byte, and a float32 scale for 64 weights that is itself stored in 8 bits
(arXiv:2305.14314, section 3)."""

MOMENTS, NARROW_MOMENTS = 2.0 * WIDE, 2 * (1 + WIDE / 256)
"""AdamW's of a number, in float32, and in 8 bits with a float32 scale for 256."""

CHUNK = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Bytes of float32 logits at a time, and FEWEST rows whatever they weigh: as the log-probs are computed."""

FEWEST = 64

CACHE_TOKENS = 32_768
"""Tokens whose keys and values are kept at a time."""

WORTH_LAYING_OUT = 2**20
"""Weights of a head above which a CPU writes completions with a copy of it that is laid out for few rows."""

CHOICE = 2 * WIDE + 8
"""Bytes of a logit while a token is chosen: log-probs, probabilities, and their sums in float64."""

SCORES_KEPT = 3
"""Float32 tensors of attention scores while a token is written."""

PROCESS = {"cpu": 500_000_000, "cuda": 1_000_000_000}
"""CPU: Python with torch and transformers before a model is loaded, measured. GPU: the driver's context, workspaces of
libraries and what the allocator cannot use; an estimate, to be replaced where a GPU is at hand."""

SCORES = 4
"""Tensors of attention scores at once where they are computed one by one: two kept, two gradients."""


NORM = 5
"""Tensors of float32 at once in the backward pass of a norm that transformers writes out in Python."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The moment with the most bytes, and what they are."""

    moment: str
    terms: Mapping[str, int]
    """Bytes by what they are for, in the order of a table; none is zero."""

    @property
    def total(self) -> int:
        return sum(self.terms.values())

    @property
    def in_use(self) -> int:
        """Bytes of the sum that something is in."""
        return self.total - self.terms.get("heap", 0)

    @property
    def largest_to_grow(self) -> str:
        """The largest term besides what is there from the start."""
        growing = {name: value for name, value in self.terms.items() if name not in ("process", "weights", "heap")}
        return max(growing, key=lambda name: growing[name], default="weights")


HEAP_SHARE, HEAP_SHARE_ADAPTED = 0.7, 1.15
"""Holes of a CPU's heap, as a share of the activations that pass through it in a forward pass, whether they are kept or
computed again: more under an adapter, whose small gradients stay and hold what lies below them. Fitted to 33 runs of
benchmarks/plan_cpu.py so that none is more than 5 % under; from call to call one run's peak differs by up to 6 %."""

MOST_HEAP = 600_000_000
"""Bytes of holes at most, as far as any run has shown: 582 MB at 2,048 tokens at once, and 379 MB at 4,096, whose
tensors are larger."""

MAPPED = 32 * 2**20
"""Bytes from which on glibc takes a tensor from the system by itself, and gives it back whole (mallopt(3),
M_MMAP_THRESHOLD)."""


def predict(model: Architecture, setting: Setting, work: Work, process: int | None = None) -> Memory:
    """What training needs at most; `process` is what the interpreter holds where that has been measured."""
    lasting = lasting_terms(model, setting)
    lasting["process"] = PROCESS[setting.device] if process is None else process
    moments = [
        Memory(moment, lasting | terms)
        for micro in work.heaviest
        for moment, terms in Pass(model, setting, micro, several=work.several).moments()
    ]
    moments.append(Memory("the update", lasting | {"gradients": WIDE * _updated(model, setting)}))
    if setting.method.rollouts:
        moments.append(Memory("writing completions", lasting | rollout_terms(model, setting, work)))
    most = max(moments, key=lambda memory: memory.total)
    terms = {**most.terms, "heap": _holes(model, setting, work) if setting.device == "cpu" else 0}
    return Memory(most.moment, {name: terms[name] for name in ORDER if terms.get(name, 0) > 0})


ORDER = (
    "weights",
    "adapters",
    "reference",
    "critic",
    "reward models",
    "optimizer",
    "gradients",
    "activations",
    "layer at work",
    "log-probs",
    "KV cache",
    "heap",
    "process",
)
"""Terms in the order of a table."""


def _holes(model: Architecture, setting: Setting, work: Work) -> int:
    """Bytes of a heap that nothing is in: what freed tensors too small for a mapping of their own leave."""
    share = HEAP_SHARE if setting.adapter is None else HEAP_SHARE_ADAPTED
    kept = replace(setting, checkpointing=False)
    passing = max((Pass(model, kept, micro, several=True).in_the_heap() for micro in work.heaviest), default=0)
    return min(MOST_HEAP, round(share * passing))


def trained_numbers(model: Architecture, setting: Setting) -> int:
    """Trained numbers of the policy and, where there is one, of the critic."""
    own = _own_numbers(model, setting)
    if not setting.method.critic:
        return own
    critic = own + model.hidden if setting.adapter is not None else _scorer_numbers(model)
    return own + critic


def moment_bytes(setting: Setting, trained: int) -> int:
    """Bytes of AdamW's moments of so many trained numbers."""
    return round((NARROW_MOMENTS if setting.eight_bit else MOMENTS) * trained)


def _updated(model: Architecture, setting: Setting) -> int:
    """Numbers whose gradients are there in an update."""
    if not setting.in_backward:
        return trained_numbers(model, setting)
    return max(model.head_numbers, *(matrix.numbers for _, matrix in model.named_matrices()))


def weight_bytes(model: Architecture, setting: Setting) -> int:
    """Bytes of the base as it is stored; embeddings and head of a packed one are as wide as activations."""
    numbers = _scorer_numbers(model) if setting.method.scores else model.numbers
    packed = model.quantisable if setting.packed else 0
    return int(packed * NF4 + (numbers - packed) * BYTES[setting.base])


def _own_numbers(model: Architecture, setting: Setting) -> int:
    if setting.adapter is not None:
        head = model.hidden if setting.method.scores and SCORE not in setting.adapter.modules_to_save else 0
        return model.adapter_numbers(setting.adapter) + head
    return _scorer_numbers(model) if setting.method.scores else model.numbers


def _scorer_numbers(model: Architecture) -> int:
    """Of the model with a score head in place of the one over the vocabulary."""
    head = 0 if model.tied else model.head_numbers
    return model.numbers - head - (model.vocabulary if model.family.head_bias else 0) + model.hidden


def lasting_terms(model: Architecture, setting: Setting) -> dict[str, int]:
    """What stays from the first step to the last."""
    method, own = setting.method, _own_numbers(model, setting)
    trained = trained_numbers(model, setting)
    weights = weight_bytes(model, setting)
    terms = {"weights": weights, "optimizer": moment_bytes(setting, trained)}
    if setting.adapter is None:
        masters = WIDE if setting.base == "bf16" else 0
        terms["optimizer"] += masters * trained
        if method.rollouts:
            terms["reference"] = weights
        if method.critic:
            terms["critic"] = int((trained - own) * BYTES[setting.base])
        terms["reward models"] = setting.reward_models * int(_scorer_numbers(model) * BYTES[setting.base])
        return terms
    terms["adapters"] = WIDE * own
    shared = 0 if setting.share_base else weights
    if method.moving:
        terms["reference"] = WIDE * own
    if method.rollouts:
        terms["reference"] = terms.get("reference", 0) + shared
    if method.critic:
        terms["critic"] = WIDE * (trained - own) + shared
    terms["reward models"] = setting.reward_models * (WIDE * own + shared)
    return terms


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one micro-batch, as a sequence of moments."""

    model: Architecture
    setting: Setting
    micro: Micro
    several: bool

    @property
    def adapter(self) -> AdapterSettings | None:
        return self.setting.adapter

    @cached_property
    def formats(self) -> Formats:
        return Formats(self.setting.activation, self.setting.device == "cpu")

    @cached_property
    def kept(self) -> list[Kept]:
        """What each layer keeps of a token."""
        forked = self.micro.gathered > 0
        first = kept_of_layer(self.model, 0, self.adapter, self.formats, forked=forked)
        if not self.model.sparse and self.adapter is None:
            return [first] * self.model.layers
        if not self.model.sparse and isinstance(self.adapter, AdapterSettings) and self.adapter.targets == "all-linear":
            return [first] * self.model.layers
        return [
            kept_of_layer(self.model, layer, self.adapter, self.formats, forked=forked)
            for layer in range(self.model.layers)
        ]

    def in_the_heap(self) -> int:
        """Bytes that the layers keep of a micro-batch in tensors that are not mapped by themselves."""
        tokens, e = self.micro.tokens, self.setting.activation
        wide = tokens * self.model.inner * e >= MAPPED
        if tokens * self.model.hidden * e >= MAPPED:
            return 0
        return tokens * sum(kept.all - (kept.feed + kept.product if wide else 0) for kept in self.kept)

    def moments(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Terms of each moment that may be the highest."""
        whole = self.adapter is None
        present = WIDE * trained_numbers(self.model, self.setting) if self.several else 0
        fresh = whole and not self.several and not self.setting.in_backward
        kept = self._kept_when_forward_ends()
        last_norm = self.micro.tokens * kept_by_last_norm(self.model, self.adapter, self.formats)
        logprobs = self._logprobs() + (self._head_gradient() if self._head_is_trained() else 0)
        yield "the log-probs, after the forward pass", self._terms(kept + last_norm, 0, logprobs, present)
        # A head that is the embedding too waits for the embedding's own gradient.
        narrow = self.setting.activation * self.model.head_numbers
        held = narrow if self._head_is_trained() and self.model.tied else 0
        head = WIDE * self.model.head_numbers if self._head_is_trained() and fresh and not self.model.tied else 0
        yield (
            "the backward pass of the last norm",
            self._terms(kept + last_norm, self._norm_at_work(), held, present + head),
        )
        last = self._terms(kept, self._at_work(self.model.layers - 1), held, present + head)
        yield "the backward pass of the last layer", last
        above = WIDE * sum(self.model.layer_numbers[1:]) if fresh else 0
        first = self._terms(self._kept_when_backward_ends(), self._at_work(0), held, present + head + above)
        yield "the backward pass of the first layer", first
        if whole:
            body = WIDE * sum(self.model.layer_numbers) if fresh else 0
            widened = WIDE * self.model.head_numbers if fresh and self.setting.activation < WIDE else 0
            embedding = 3 * narrow if held else narrow + widened
            yield "the embedding's gradient", self._terms(0, 0, embedding, present + head + body)

    def _norm_at_work(self) -> int:
        """Gradients in float32, of a norm that is written out operation by operation."""
        width = self.micro.tokens * self.model.hidden
        return 2 * self.setting.activation * width if self.model.family.norm == "layer" else NORM * WIDE * width

    def _head_is_trained(self) -> bool:
        """Whether there is a projection to the vocabulary, and all weights are trained."""
        return self.adapter is None and not self.setting.method.scores

    def _terms(self, activations: int, layer: int, logprobs: int, gradients: int) -> dict[str, int]:
        return {
            "activations": activations,
            "layer at work": layer,
            "log-probs": logprobs,
            "gradients": gradients,
        }

    def _outside(self) -> int:
        return self.micro.tokens * kept_outside(self.model, self.formats)

    def _kept_when_forward_ends(self) -> int:
        tokens = self.micro.tokens
        if self.setting.checkpointing:
            return tokens * self.model.layers * self.model.hidden * self.setting.activation + self._outside()
        spared = not_kept_at_the_bottom(self.model, self.adapter, self.formats)
        return tokens * (sum(kept.all for kept in self.kept) - spared) + self._outside() + self._masks()

    def _kept_when_backward_ends(self) -> int:
        """What the first layer keeps; under checkpointing its input, and the rest is at work again."""
        if self.setting.checkpointing:
            return self.micro.tokens * self.model.hidden * self.setting.activation + self._outside()
        return self.micro.tokens * self.kept[0].all + self._outside() + self._masks()

    def _masks(self) -> int:
        """Masks of trees that a sliding window cuts, or whose scores are explicit: once for all layers."""
        # Explicit scores have a mask for layers with a window and one for those without, even where none is cut.
        windowed = self.model.window is not None and (self.model.softcap or self.micro.path > self.model.window)
        return WIDE * self.micro.squares * (int(windowed) + int(self.model.softcap))

    def _at_work(self, layer: int) -> int:
        """What a layer's own backward pass needs beside what is kept; under checkpointing all that it keeps too."""
        tokens, e = self.micro.tokens, self.setting.activation
        kept = self.kept[layer]
        again = 0
        if self.setting.checkpointing:
            again = tokens * kept.all + self._masks()
            again -= tokens * self.model.hidden * e if input_is_kept(self.model, self.formats) else 0
        of_feed = tokens * e * (2 * self._widest_feed(layer) + self.model.hidden)
        of_attention = self._attention_at_work(kept)
        if self.adapter is None:
            fresh = 0 if self.several else WIDE  # gradients that this pass makes first, in float32
            of_feed += (e + (fresh if e < WIDE else 0)) * self.model.down.numbers
            above = 0 if self.setting.in_backward else fresh
            of_attention += above * sum(matrix.numbers for matrix in (*self.model.feed, self.model.down))
        return again + max(of_feed, of_attention) + self._unpacked()

    def _widest_feed(self, layer: int) -> int:
        """Width of the tensor whose gradients exist three times at once, less the one just let go of."""
        if layer in self.model.sparse and self.model.experts is not None:
            return self.model.experts.active * (self.model.experts.inner + self.model.hidden)
        return self.model.inner

    def _attention_at_work(self, kept: Kept) -> int:
        """Gradients of attention, after the feed-forward and its norms have given back what they kept."""
        tokens, e = self.micro.tokens, self.setting.activation
        own_norms = kept.norms // 2 if self.model.family.norms > 1 else 0
        given_back = tokens * (kept.feed + kept.product + own_norms)
        query, keys = self.model.query, self.model.keys
        if self.model.softcap:
            scores = SCORES * WIDE + (e if e < WIDE else 0)
            return scores * self.model.heads * self.micro.longest**2 + tokens * self.model.hidden * e - given_back
        gradients = tokens * e * (2 * query + 2 * keys + self.model.hidden)
        if self.setting.device == "cpu" and e < WIDE:  # the kernel runs in float32
            gradients += tokens * WIDE * (4 * query + 4 * keys)
        return gradients - given_back

    def _unpacked(self) -> int:
        """The largest matrix of a packed base, unpacked for its product."""
        if not self.setting.packed:
            return 0
        largest = max(matrix.inputs * matrix.outputs for _, matrix in self.model.named_matrices())
        return self.setting.activation * largest

    def _head_gradient(self) -> int:
        """The gradient of the projection to the vocabulary: summed in float32, then in the weight's format."""
        narrow = self.setting.activation if self.setting.activation < WIDE else 0
        single = self.micro.targets <= self._chunk_rows()
        return self.model.head_numbers * (self.setting.activation if single else WIDE + narrow)

    def _chunk_rows(self) -> int:
        return max(FEWEST, CHUNK[self.setting.device] // (WIDE * self.model.vocabulary))

    def _logprobs(self) -> int:
        """Hidden states of the targets, their gradients, and logits a chunk at a time."""
        e, targets = self.setting.activation, self.micro.targets
        if self.setting.method.scores:
            return 2 * self.micro.completions * self.model.hidden * e
        hidden = targets * self.model.embedding * e * 2
        first = min(targets, self._chunk_rows())
        second = min(targets - first, self._chunk_rows())
        narrow = e if e < WIDE else 0
        # Of a chunk two tensors are there until the next one's are made.
        rows = 2 * WIDE * first + max(narrow * first, (WIDE + narrow) * second)
        if self.model.logit_cap:
            rows = max(rows, WIDE * ((2 if second else 3) * first + 2 * second))
        return hidden + self.model.vocabulary * rows


def written_at_once(setting: Setting, work: Work) -> int:
    """Prompts whose completions are written together."""
    each = max(1, work.prompt) + setting.method.group * setting.new_tokens
    return max(1, min(work.prompts, CACHE_TOKENS // each))


def rollout_terms(model: Architecture, setting: Setting, work: Work) -> dict[str, int]:
    """Keys and values of the rows that are written together, and the most of what a pass or a choice needs besides."""
    e, prompt, new = setting.activation, max(1, work.prompt), setting.new_tokens
    group = setting.method.group
    at_once = written_at_once(setting, work)
    rows = at_once * group
    cached = at_once * prompt + rows * (new - 1)
    # Prompts are computed at once; then each token attends to all before it, and is chosen from the whole vocabulary.
    passing = at_once * prompt * (3 * model.inner + 4 * model.hidden + 2 * model.head_width) * e
    attending = SCORES_KEPT * rows * model.heads * (prompt + new) * WIDE
    chosen = CHOICE * rows * model.vocabulary
    laid_out = e * model.head_numbers if setting.device == "cpu" and model.head_numbers >= WORTH_LAYING_OUT else 0
    most = max(passing, attending, chosen)
    return {
        "KV cache": cached * 2 * model.layers * model.keys * e,
        "layer at work": most if most > chosen else 0,
        "log-probs": laid_out + (most if most == chosen else 0),
        "gradients": WIDE * trained_numbers(model, setting),
    }
