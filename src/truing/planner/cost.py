"""What a step computes and moves, by part, and how long that takes; a multiplication and addition count as two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from truing.planner.activations import WIDE, Formats, kept_of_layer
from truing.planner.architecture import Architecture
from truing.planner.machine import Rates
from truing.planner.memory import trained_numbers, weight_bytes, written_at_once
from truing.planner.setting import Setting, Work

FORWARD_MOVES, BACKWARD_MOVES = 2, 3
"""How often a byte that autograd keeps goes through memory: written and read; read again, and its gradient written and
read."""

LOGIT_MOVES = 6
"""How often a logit does: written, read for its log-sum-exp and its choice, and the gradient in place of it."""

UPDATE_MOVES = 10
"""How often a trained number does in an update: AdamW reads four and writes three, its norm and scale three more."""

OPERATIONS = 40
"""Calls of kernels in a layer's forward pass; twice as many backward."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Work of one kind."""

    products: float = 0.0
    """Operations of linear layers."""
    attention: float = 0.0
    """Operations of attention."""
    moved: float = 0.0
    """Bytes that go through memory between them."""
    calls: float = 0.0
    """Of kernels."""
    read: float = 0.0
    """Bytes that are read for so few operations that reading takes the time: weights and caches while a token is
    written."""

    @property
    def operations(self) -> float:
        return self.products + self.attention

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.products + other.products,
            self.attention + other.attention,
            self.moved + other.moved,
            self.calls + other.calls,
            self.read + other.read,
        )

    def __mul__(self, times: float) -> Amount:
        return Amount(
            times * self.products, times * self.attention, times * self.moved, times * self.calls, times * self.read
        )

    def seconds(self, rates: Rates) -> float:
        """How long it takes, one thing after the other."""
        moved = 0.0 if rates.bandwidth is None else self.moved / rates.bandwidth
        read = 0.0 if rates.reading is None else self.read / rates.reading
        computed = self.products / rates.products + self.attention / rates.attention
        return computed + moved + read + self.calls * rates.launch


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step computes, and how long a run takes."""

    parts: Mapping[str, Amount]
    """Of an optimizer step."""
    forward: Amount
    """One forward pass over the tokens of a step."""
    steps: int
    rates: Rates | None
    """What the device reaches; None where it is not known."""

    @property
    def step(self) -> float:
        """Operations of a step."""
        return sum(part.operations for part in self.parts.values())

    @property
    def seconds(self) -> float | None:
        """Of the whole run."""
        if self.rates is None:
            return None
        return self.steps * sum(part.seconds(self.rates) for part in self.parts.values())


def cost_of(model: Architecture, setting: Setting, work: Work, rates: Rates | None) -> Cost:
    """Count a step: forward 2, backward 4 (2 where the weights are frozen), recomputation 2 for each weight and token.

    Attention counts 4 for each pair and each number of a head forward, 2.5 times that backward.
    """
    body = model.body_numbers * work.tokens
    pairs = 4 * model.query * model.layers * work.attended
    head = 0 if setting.method.scores else model.head_numbers * work.targets
    again, method = int(setting.checkpointing), setting.method
    backward = 2 if setting.adapter is not None else 4
    kept, calls = _kept(model, setting) * work.tokens, OPERATIONS * model.layers * work.micros
    logits = 0 if setting.method.scores else LOGIT_MOVES * WIDE * model.vocabulary * work.targets
    forward = Amount(2 * body + 2 * head, pairs, FORWARD_MOVES * kept + logits / 2, calls)
    trained = Amount(
        (2 + backward + 2 * again) * body, 0, (FORWARD_MOVES * (1 + again) + BACKWARD_MOVES) * kept, (3 + again) * calls
    )
    attended = Amount(attention=(3 + again) * pairs)
    parts = {
        "body": trained,
        "attention": attended,
        "vocabulary": Amount((2 + (2 if setting.adapter is not None else 6)) * head, 0, logits),
        "update": Amount(moved=UPDATE_MOVES * WIDE * trained_numbers(model, setting)),
    }
    if method.ahead:
        parts["looking ahead"] = forward
    if method.critic:
        parts["critic"] = trained + attended
    rollout = 1 / method.epochs if method.rollouts else 1.0
    if method.reference:
        parts["reference"] = forward * rollout
    if method.rollouts:
        # Prompts are computed once and every written token attends to what is there: one forward pass in all.
        again_in_full = Amount() if setting.base == "fp32" else forward  # captured log-probs are exact in float32 alone
        parts["writing"] = (_written(model, setting, work, forward) + again_in_full) * rollout
        read = Amount(2 * body, pairs, FORWARD_MOVES * kept, calls)
        parts["scoring"] = read * ((int(method.critic) + setting.reward_models) * rollout)
    return Cost({name: part for name, part in parts.items() if part != Amount()}, forward, work.steps, rates)


def _kept(model: Architecture, setting: Setting) -> int:
    """Bytes a token that autograd keeps of all layers without checkpointing."""
    formats = Formats(setting.activation, setting.device == "cpu")
    layers = {layer: kept_of_layer(model, layer, setting.adapter, formats).all for layer in _kinds(model)}
    return sum(kept * _kinds(model)[layer] for layer, kept in layers.items())


def _kinds(model: Architecture) -> dict[int, int]:
    """A layer of each kind, and how many there are of it."""
    kinds: dict[bool, list[int]] = {}
    for layer in range(model.layers):
        kinds.setdefault(layer in model.sparse, []).append(layer)
    return {layers[0]: len(layers) for layers in kinds.values()}


def _written(model: Architecture, setting: Setting, work: Work, forward: Amount) -> Amount:
    """A rollout's own work: every round of new tokens reads all weights again, and each row its keys and values."""
    rows, rounds = work.prompts * setting.method.group, setting.new_tokens
    waves = -(-work.prompts // written_at_once(setting, work))
    cached = rows * rounds * (work.prompt + rounds / 2) * 2 * model.layers * model.keys * setting.activation
    read = waves * rounds * weight_bytes(model, setting) + cached
    return Amount(forward.products, forward.attention, 0, waves * rounds * OPERATIONS * model.layers, read)
