"""The short causal convolution: against torch.nn.Conv1d, over splits, and across resets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.kernels import causal_conv1d


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_equals_a_padded_conv1d_and_its_gradients(taps, length):
    x, weight, bias = draw(3, length, 5).requires_grad_(), draw(5, taps).requires_grad_(), draw(5).requires_grad_()
    padded = nn.functional.pad(x.transpose(1, 2), (taps - 1, 0))
    expected = nn.functional.conv1d(padded, weight[:, None], bias, groups=5).transpose(1, 2)
    out_weight = draw(3, length, 5)
    want = torch.autograd.grad((expected * out_weight).sum(), (x, weight, bias))
    # All-false resets take the other path through the function.
    for reset in (None, torch.zeros(3, length, dtype=torch.bool)):
        y, state = causal_conv1d(x, weight, bias, reset=reset)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(state, padded.transpose(1, 2)[:, length:])
        for got, right in zip(torch.autograd.grad((y * out_weight).sum(), (x, weight, bias)), want, strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize("split", [1, 2, 9])
def test_a_carried_state_joins_the_parts(split):
    x, weight = draw(2, 12, 3), draw(3, 4)
    start = draw(2, 3, 3)
    whole, last = causal_conv1d(x, weight, initial_state=start)
    first, state = causal_conv1d(x[:, :split], weight, initial_state=start)
    second, last_of_parts = causal_conv1d(x[:, split:], weight, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last_of_parts, last)


@pytest.mark.parametrize("place", [0, 1, 5, 9, 11])
def test_nothing_before_a_reset_is_seen_after_it_not_even_by_the_state(place):
    x, weight, bias, start = draw(1, 12, 3), draw(3, 4), draw(3), draw(1, 3, 3)
    reset = torch.zeros(1, 12, dtype=torch.bool)
    reset[0, place] = True
    y, state = causal_conv1d(x, weight, bias, initial_state=start, reset=reset)
    alone, alone_state = causal_conv1d(x[:, place:], weight, bias)
    torch.testing.assert_close(y[:, place:], alone)
    torch.testing.assert_close(state, alone_state)
    if place:
        torch.testing.assert_close(y[:, :place], causal_conv1d(x[:, :place], weight, bias, initial_state=start)[0])


def test_half_types_are_summed_in_single_precision_and_the_state_keeps_its_dtype():
    x, weight, bias = draw(2, 200, 4).bfloat16(), draw(4, 4).bfloat16(), draw(4).bfloat16()
    start = torch.zeros(2, 3, 4)
    exact, _ = causal_conv1d(x.double(), weight.double(), bias.double())
    for reset in (None, torch.zeros(2, 200, dtype=torch.bool)):
        y, state = causal_conv1d(x, weight, bias, initial_state=start, reset=reset)
        assert y.dtype == torch.bfloat16
        assert state.dtype == torch.float32
        # One rounding of bfloat16 is 2^-9 of the value.
        torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-9)
