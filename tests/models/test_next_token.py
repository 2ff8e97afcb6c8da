from __future__ import annotations

import pytest
import torch
from torch import nn

from truing.models.heads import OutputHead
from truing.models.next_token import WORTH_PACKING, NextTokens

WIDE = 256


def head_of(vocabulary: int, dtype: torch.dtype = torch.float32, *, bias: bool = False) -> OutputHead:
    torch.manual_seed(0)
    linear = nn.Linear(WIDE, vocabulary, bias=bias, dtype=dtype).requires_grad_(False)
    return OutputHead(linear, True, linear.weight, linear.bias, 0.5, 30.0)


def expected(head: OutputHead, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    weight = head.weight.double()
    logits = 0.5 * (hidden.double() @ weight.t() + (0 if head.bias is None else head.bias.double()))
    return torch.log_softmax(30.0 * torch.tanh(logits / 30.0) / temperature, dim=-1)


@pytest.mark.parametrize("vocabulary", [64, WORTH_PACKING // WIDE])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 32, 200])
def test_log_probs_are_those_of_the_definition_with_and_without_a_packed_weight(
    vocabulary: int, bias: bool, rows: int
) -> None:
    head = head_of(vocabulary, bias=bias)
    hidden = torch.randn(rows, WIDE)
    found = NextTokens(head).logprobs(hidden, 0.7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected(head, hidden, 0.7), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(rows))


def test_bfloat16_weights_are_multiplied_as_the_plain_product_does() -> None:
    head = head_of(WORTH_PACKING // WIDE, torch.bfloat16)
    hidden = torch.randn(32, WIDE, dtype=torch.bfloat16)
    plain = nn.functional.linear(hidden, head.weight).float()
    logprobs = torch.log_softmax(30.0 * torch.tanh(0.5 * plain / 30.0), dim=-1)
    torch.testing.assert_close(NextTokens(head).logprobs(hidden), logprobs, rtol=0, atol=2e-2)


def test_a_head_of_another_kind_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    module = Doubled(WIDE, 64, bias=False).requires_grad_(False)
    hidden = torch.randn(3, WIDE)
    found = NextTokens(OutputHead(module, False, module.weight, None, 1.0, None)).logprobs(hidden)
    torch.testing.assert_close(found, torch.log_softmax(2 * hidden @ module.weight.t(), dim=-1))
