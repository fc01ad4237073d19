"""ttt_linear beyond the op contract: its steps are gradient descent on the inner loss, and the edges of its shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import TTTState, ttt_linear

from .contract import assert_close, backends
from .table import CASES

CASE = CASES["ttt_linear"]
served = pytest.mark.parametrize("backend", [*backends(CASE), "reference"])


def _draw(length: int, width: int, heads: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        **{name: normal(2, length, heads, width) for name in ("q", "k", "v")},
        "eta": 0.1 * torch.rand(2, length, heads, generator=generator),
        "W0": normal(heads, width, width) / width**0.5,
        "b0": normal(heads, width),
        "ln_weight": 1 + 0.1 * normal(heads, width),
        "ln_bias": 0.1 * normal(heads, width),
    }


@served
@pytest.mark.parametrize("mini_batch", [1, 3])
def test_steps_are_gradient_descent_on_the_inner_loss(backend: str, mini_batch: int) -> None:
    """PyTorch's layer norm and autograd, step by step, come to the same outputs and weights."""
    drawn, length = _draw(5, 6), 5
    o, state = ttt_linear(**drawn, mini_batch=mini_batch, epsilon=1e-5, backend=backend)
    exact = {name: t.double() for name, t in drawn.items()}

    def model(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return x + F.layer_norm(x @ W + b, (6,), exact["ln_weight"][0], exact["ln_bias"][0], eps=1e-5)

    for row in range(2):
        W, b = exact["W0"][0], exact["b0"][0]
        start = W, b
        for t in range(length):
            if t % mini_batch == 0:
                start = W.requires_grad_(), b.requires_grad_()
            loss = (model(exact["k"][row, t, 0], *start) - exact["v"][row, t, 0]).square().sum() / 2
            steps = torch.autograd.grad(loss, start)
            rate = exact["eta"][row, t, 0]
            W, b = (W - rate * steps[0]).detach(), (b - rate * steps[1]).detach()
            assert_close(o[row, t, 0], model(exact["q"][row, t, 0], W, b).detach(), 1e-5, f"o at {t}")
        assert_close(state.W[row, 0] - state.W_update[row, 0], W, 1e-5, "W")
        assert_close(state.b[row, 0] - state.b_update[row, 0], b, 1e-5, "b")
        assert state.position[row] == length % mini_batch


@served
def test_learns_a_map(backend: str) -> None:
    """Where values are a function that the inner model can be, its error shrinks along the sequence."""
    drawn = _draw(200, 8)
    drawn["ln_weight"], drawn["ln_bias"] = torch.ones(1, 8), torch.zeros(1, 8)
    truth = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    drawn["v"] = drawn["k"] + F.layer_norm(drawn["k"] @ truth, (8,))
    drawn["q"], drawn["eta"] = drawn["k"], torch.full((2, 200, 1), 0.1)
    o, _ = ttt_linear(**drawn, backend=backend)
    error = (o - drawn["v"]).square().mean((0, 2, 3))
    assert error[-32:].mean() < 0.25 * error[:16].mean()


@pytest.mark.parametrize("backend", [b for b in backends(CASE) if b != "triton"])
@pytest.mark.parametrize("width", [1, 8, 17, 64])
@pytest.mark.parametrize("mini_batch", [5, 16, 40])
def test_any_width_and_mini_batch(backend: str, width: int, mini_batch: int) -> None:
    drawn = _draw(43, width, heads=2)
    options = {"mini_batch": mini_batch, "epsilon": 1e-2}
    o, state = ttt_linear(**drawn, **options, backend=backend)
    wanted, last = ttt_linear(**{n: t.double() for n, t in drawn.items()}, **options, backend="reference")
    assert_close(o, wanted, 1e-4, "o")
    assert_close(state.W, last.W, 1e-4, "W")


@pytest.mark.parametrize("backend", [b for b in (*backends(CASE), "reference") if b != "triton"])
def test_names_a_position_outside_of_a_mini_batch(backend: str) -> None:
    drawn = _draw(3, 4)
    _, state = ttt_linear(**drawn, backend=backend)
    wrong = TTTState(*state[:4], torch.tensor([3, 16]))
    with pytest.raises(ValueError, match="position is between 3 and 16, expected at least 0 and below mini_batch = 16"):
        ttt_linear(**drawn, initial_state=wrong, backend=backend)


def test_names_a_state_of_the_wrong_kind() -> None:
    drawn = _draw(3, 4)
    with pytest.raises(TypeError, match="initial_state is a Tensor, expected the five tensors of TTTState"):
        ttt_linear(**drawn, initial_state=drawn["W0"])  # type: ignore[arg-type]
    _, state = ttt_linear(**drawn)
    with pytest.raises(ValueError, match=r"initial_state.b has shape .*, expected \(B, H, D\)"):
        ttt_linear(**drawn, initial_state=state._replace(b=state.W))
    with pytest.raises(TypeError, match=r"initial_state.position has dtype float32, expected one of int64"):
        ttt_linear(**drawn, initial_state=state._replace(position=state.position.float()))
