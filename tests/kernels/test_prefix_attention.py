"""prefix_attention beside PyTorch's attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scanweave.kernels import PrefixState, prefix_attention

from .contract import assert_close, normal


def test_equals_causal_attention_of_one_query() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, v = normal(generator, 1, 3, 1, 4), normal(generator, 2, 3, 70, 4), normal(generator, 2, 3, 70, 5)
    wanted = F.scaled_dot_product_attention(query.expand(2, -1, 70, -1), keys, v, is_causal=True)
    scores = (query * keys).sum(-1) / 2
    found, _ = prefix_attention(scores.transpose(1, 2), v.transpose(1, 2))
    assert_close(found.transpose(1, 2), wanted, 1e-12, "o")


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_one_score_far_above_all_others_takes_everything(backend: str) -> None:
    scores = torch.tensor([-1e4, 0.0, 1e4, -1e4, 0.0]).view(1, 5, 1)
    v = torch.arange(5.0).view(1, 5, 1, 1)
    o, state = prefix_attention(scores, v, backend=backend)
    assert o.flatten().tolist() == [0.0, 1.0, 2.0, 2.0, 2.0]
    assert state.maximum.item() == 1e4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_masked_steps_count_for_nothing(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, v = normal(generator, 1, 40, 2).to(dtype), normal(generator, 1, 40, 2, 3).to(dtype)
    masked = torch.rand(40, generator=generator) < 0.5
    masked[:20], masked[20] = True, False
    scores[:, masked], v[:, 3] = -torch.inf, torch.nan
    leaves = scores.requires_grad_(), v.requires_grad_()
    o, state = prefix_attention(*leaves, backend=backend)
    kept, same = prefix_attention(scores[:, ~masked], v[:, ~masked], backend=backend)
    bound = 4 * torch.finfo(dtype).eps
    assert not o[:, :20].any()
    assert_close(o[:, ~masked], kept, bound, "o")
    for one, other in zip(state, same, strict=True):
        assert_close(one, other, bound, "state")
    ds, dv = torch.autograd.grad(o.square().sum(), leaves)
    for gradient in (ds, dv):
        assert not gradient[:, masked].any()
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_a_masked_piece_leaves_the_state_as_it_was(backend: str) -> None:
    scores, v = torch.full((1, 5, 2), -torch.inf), torch.ones(1, 5, 2, 3)
    o, empty = prefix_attention(scores, v, backend=backend)
    assert not torch.cat([o.flatten(), empty.numerator.flatten(), empty.denominator.flatten()]).any()
    assert torch.isneginf(empty.maximum).all()
    _, before = prefix_attention(torch.ones(1, 1, 2), 3 * v[:, :1], initial_state=empty, backend=backend)
    o, after = prefix_attention(scores, v, initial_state=before, backend=backend)
    assert (o == 3).all()
    for one, other in zip(after, before, strict=True):
        assert torch.equal(one, other)


def test_the_order_of_what_came_before_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, v = normal(generator, 1, 30, 2), normal(generator, 1, 30, 2, 3)
    order = torch.randperm(30, generator=generator)
    o, state = prefix_attention(scores, v)
    shuffled, same = prefix_attention(scores[:, order], v[:, order])
    assert_close(shuffled[:, -1], o[:, -1], 1e-12, "the last o")
    for one, other in zip(same, state, strict=True):
        assert_close(one, other, 1e-12, "state")


def test_names_a_state_that_is_none() -> None:
    scores, v = torch.zeros(1, 3, 2), torch.zeros(1, 3, 2, 4)
    with pytest.raises(TypeError, match="initial_state is a Tensor, expected the three tensors of PrefixState"):
        prefix_attention(scores, v, initial_state=v)
    state = PrefixState(torch.zeros(1, 2, 4), torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"initial_state.denominator has shape \(1, 3\), expected \(B, H\)"):
        prefix_attention(scores, v, initial_state=state)
