"""The only door to the vocabulary: log-probs of given tokens, without a logit for every token of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 16 * 2**20}
"""Bytes of float32 logits that may exist at a time, twice that for a moment. On a CPU they should fit its cache."""

CHUNK_BYTES_ELSEWHERE = 256 * 2**20

FEWEST_ROWS = 64
"""Rows of a chunk whatever they weigh: with fewer, reading the weight takes longer than multiplying by it."""


def linear_logprobs(
    hidden: Tensor,  # float [K, d]
    weight: Tensor,  # float [V, d]
    targets: Tensor,  # int64 [K]
    *,
    bias: Tensor | None = None,  # float [V]
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    squares: bool = False,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probs of the targets, and where asked for the distributions' entropy in nats and log Σ p²: float32 [K] each.

    The logits are `hidden @ weightᵀ + bias`, times `scale`, soft-capped to `c·tanh(·/c)`, over `temperature`. The
    product runs in the weight's dtype (autocast's where that is on), everything after it in float32 (float64 stays
    float64). Rows are taken in chunks of `chunk_bytes` (None: what suits the device). A frozen head's gradient is made
    with the logits and kept, [K, d] in place of [K, V]; otherwise the logits are computed again for the backward pass,
    unless one chunk was enough to keep them.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    bias = None if bias is None else bias.to(dtype)
    rows = chunk_rows(weight.shape[0], weight.device) if chunk_bytes is None else chunk_bytes // (4 * weight.shape[0])
    post = _Post(scale / temperature, None if softcap is None else softcap / temperature)
    logprobs, entropies, log_squares = _LinearLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden.to(dtype), weight.to(dtype), bias, targets, post, (entropy, squares), max(1, rows)
    )
    return logprobs, entropies if entropy else None, log_squares if squares else None


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits are computed at a time."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES_ELSEWHERE)
    return max(FEWEST_ROWS, budget // (4 * vocab_size))


def logits_logprobs(
    logits: Tensor,  # float [K, V]
    targets: Tensor,  # int64 [K]
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same three from logits that a head of another kind has made, with plain autograd: float32 [K] each."""
    logprobs = whole_logprobs(logits, scale=scale, softcap=softcap, temperature=temperature)
    own = logprobs.gather(1, targets[:, None]).squeeze(1)
    return own, -(logprobs.exp() * logprobs).sum(dim=-1), torch.logsumexp(2 * logprobs.detach(), dim=-1)


def whole_logprobs(
    logits: Tensor,  # float [k, V]
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs of the whole vocabulary from raw logits, for a few rows at a time: float32 [k, V]."""
    final = logits.float() * (scale / temperature)
    if softcap is not None:
        cap = softcap / temperature
        final = torch.tanh(final / cap) * cap
    return torch.log_softmax(final, dim=-1)


@dataclass(frozen=True, slots=True)
class _Post:
    """What turns products into final logits: z = cap·tanh(factor·x / cap), or factor·x without a cap."""

    factor: float
    cap: float | None

    def apply_(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits.mul_(self.factor)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    def chain_(self, grad: Tensor, final: Tensor) -> Tensor:
        """Carry d/dz back to d/dx, with z given."""
        if self.cap is not None:
            grad.addcmul_(grad * final, final, value=-1.0 / self.cap**2)
        return grad.mul_(self.factor) if self.factor != 1.0 else grad


def _final_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, post: _Post) -> Tensor:  # float32 [k, V]
    product = F.linear(hidden, weight, bias)
    return post.apply_(product if product.dtype == torch.float64 else product.float())


class _LinearLogprobs(torch.autograd.Function):
    """Chunked forward and backward; gradients only for the inputs that need them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        post: _Post,
        extras: tuple[bool, bool],
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        entropy, squares = extras
        count = hidden.shape[0]
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        logprobs = hidden.new_empty(count, dtype=wide)
        entropies, log_squares = hidden.new_zeros(count, dtype=wide), hidden.new_zeros(count, dtype=wide)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # A row's gradient is its incoming scalar times d log p / d hidden, so that this can be made right here.
        ready = needs_hidden and not (needs_weight or needs_bias or entropy)
        slopes = torch.empty_like(hidden) if ready else None
        final: Tensor | None = None
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            final = _final_logits(hidden[part], weight, bias, post)
            log_p = torch.log_softmax(final, dim=-1)
            logprobs[part] = log_p.gather(1, targets[part, None]).squeeze(1)
            if entropy:
                entropies[part] = -log_p.exp().mul_(log_p).sum(dim=-1)
            if squares:
                log_squares[part] = torch.logsumexp(2 * log_p, dim=-1)
            if slopes is not None:
                grad = post.chain_(_less_one(log_p.exp_(), targets[part]), final)
                torch.mm(grad.to(weight.dtype), weight, out=slopes[part])
        kept = final if count <= rows and slopes is None and any(ctx.needs_input_grad[:3]) else None
        ctx.save_for_backward(hidden, weight, bias, targets, entropies, kept, slopes)
        ctx.post, ctx.entropy, ctx.rows = post, entropy, rows
        ctx.mark_non_differentiable(*((log_squares,) if entropy else (entropies, log_squares)))
        return logprobs, entropies, log_squares

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies, kept, slopes = ctx.saved_tensors
        if slopes is not None:
            return (slopes * -grads[0][:, None].to(slopes.dtype), *(None,) * 6)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = entropies.dtype
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        single = hidden.shape[0] <= ctx.rows  # then there is nothing to add up, and no need of float32 to do it in
        grad_weight = torch.zeros_like(weight, dtype=weight.dtype if single else wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, min(start + ctx.rows, hidden.shape[0]))
            final = _final_logits(hidden[part], weight, bias, ctx.post) if kept is None else kept
            of_entropy = (grads[1][part], entropies[part]) if ctx.entropy else None
            grad = _grad_final(final, targets[part], grads[0][part], of_entropy)
            grad = ctx.post.chain_(grad, final)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            narrow = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(narrow, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _accumulate(grad_weight, narrow, hidden[part])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _less_one(probs: Tensor, targets: Tensor) -> Tensor:
    """P − onehot, in place: minus the slope of log p, and exact where p is close to 1."""
    return probs.scatter_add_(1, targets[:, None], probs.new_full((), -1.0).expand(len(targets), 1))


def _grad_final(final: Tensor, targets: Tensor, grad: Tensor, of_entropy: tuple[Tensor, Tensor] | None) -> Tensor:
    """d/dz = g (onehot − p) − g_H p (log p + H): float32 [k, V]."""
    if of_entropy is None:
        return _less_one(torch.softmax(final, dim=-1), targets).mul_(-grad[:, None])
    grad_h, entropy = of_entropy
    log_p = torch.log_softmax(final, dim=-1)
    probs = log_p.exp()
    out = log_p.add_(entropy[:, None]).mul_(-grad_h[:, None]).sub_(grad[:, None]).mul_(probs)
    return out.scatter_add_(1, targets[:, None], grad[:, None])


def _accumulate(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Add gradᵀ hidden to the total, in place where the dtypes agree; half-precision products are summed in float32."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), hidden)
    else:
        total += grad.t() @ hidden
