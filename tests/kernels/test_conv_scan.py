"""conv_scan beside its recurrence written out pixel by pixel, and what it hands to linear_scan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scanweave.kernels import conv_scan, dispatch

from .contract import assert_close, normal

SHAPE = (2, 5, 3, 4, 6)  # B, L, H, W, P: no two alike


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return normal(torch.Generator().manual_seed(seed), *shape, dtype=torch.complex128)


@pytest.mark.parametrize("shared", [(0, 1, 2, 3), (0, 2, 3), (2, 3), (1,), ()])
def test_every_pixel_runs_by_itself(shared: tuple[int, ...]) -> None:
    a = 0.5 * _draw(*(1 if axis in shared else size for axis, size in enumerate(SHAPE)), seed=1)
    bu, state = _draw(*SHAPE), _draw(2, 3, 4, 6, seed=2)
    reset = torch.tensor([[False, True, False, False, False], [False, False, False, True, True]])
    x, final = conv_scan(a.flatten() if len(shared) == 4 else a, bu, initial_state=state, reset=reset)
    whole = a.expand(SHAPE)
    for b, h, w, p in torch.cartesian_prod(*(torch.arange(SHAPE[axis]) for axis in (0, 2, 3, 4))).tolist():
        value = state[b, h, w, p]
        for t in range(SHAPE[1]):
            value = whole[b, t, h, w, p] * (0 if reset[b, t] else value) + bu[b, t, h, w, p]
            assert_close(x[b, t, h, w, p], value, 1e-12, "x")
        assert_close(final[b, h, w, p], value, 1e-12, "final_state")


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_a_constant_decay_is_never_larger_than_a_frame(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form, sizes = dispatch.kernel("linear_scan", backend), []

    def forward(a: Tensor, *rest: object) -> object:
        sizes.append(a.numel())
        return form.forward(a, *rest)

    def backward(a: Tensor, *rest: object) -> object:
        found = form.backward(a, *rest)
        sizes.extend((a.numel(), found[0].numel()))
        return found

    if form.refuses(torch.empty(0)):
        pytest.skip("the C++ kernels were not built")
    monkeypatch.setitem(dispatch._kernels["linear_scan"], backend, replace(form, forward=forward, backward=backward))
    a = _draw(6).mul(0.5).requires_grad_()
    conv_scan(a, _draw(*SHAPE), backend=backend)[0].abs().sum().backward()
    assert sizes == [3 * 4 * 6] * 3
