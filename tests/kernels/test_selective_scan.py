"""selective_scan beyond the op contract: what it can express, what it keeps in memory, and the edges of its shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import selective_scan

from .contract import assert_close, backends, gradients
from .table import CASES

CASE = CASES["selective_scan"]
served = pytest.mark.parametrize("backend", [*backends(CASE), "reference"])


@served
def test_forgets_nothing_without_decay(backend: str) -> None:
    """With A = 0 and delta = 1 the state is the running sum of B u."""
    u = torch.arange(1.0, 41).view(1, 40, 1)
    one = torch.ones_like(u)
    y, state = selective_scan(u, one, torch.zeros(1, 1), one, one, dt_softplus=False, backend=backend)
    assert torch.equal(y, u.cumsum(1))
    assert state.item() == 820


@served
def test_halves_by_a_known_decay(backend: str) -> None:
    u = torch.zeros(1, 40, 1)
    u[:, 0] = 1
    one = torch.ones_like(u)
    y, _ = selective_scan(u, one, -torch.log(torch.tensor([[2.0]])), one, one, dt_softplus=False, backend=backend)
    assert_close(y.flatten(), 0.5 ** torch.arange(40.0), 1e-6, "y")


@served
def test_signed_eigenvalues_track_parity(backend: str) -> None:
    """``exp(delta A)`` underflows to 0, so a = -1: a state that flips at each step whose delta is large."""
    flips = torch.rand(1, 64, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    dt = torch.where(flips, 1.0, 0.0)
    zero = torch.zeros_like(dt)
    options = {"initial_state": torch.ones(1, 1, 1), "dt_softplus": False, "backend": backend}
    rate = torch.tensor([[-1000.0]])
    y, _ = selective_scan(zero, dt, rate, zero, zero + 1, eigenvalues="signed", **options)
    assert torch.equal(y, 1 - 2.0 * (flips.cumsum(1) % 2))
    y, _ = selective_scan(zero, dt, rate, zero, zero + 1, **options)
    assert (y >= 0).all()


@served
def test_groups_are_neighbouring_channels(backend: str) -> None:
    drawn = CASE.draw(20, dtype=torch.float32)
    y, state = selective_scan(**drawn, backend=backend)
    channels = ("u", "dt", "z"), ("A", "D", "dt_bias", "initial_state")
    for group, part in enumerate((slice(0, 3), slice(3, 6))):
        piece = {n: drawn[n][..., part] for n in channels[0]}
        piece |= {n: drawn[n][:, part] if n == "initial_state" else drawn[n][part] for n in channels[1]}
        piece |= {n: drawn[n][:, :, group] for n in ("B", "C")}
        alone, final = selective_scan(**piece, backend=backend)
        assert_close(y[..., part], alone, 1e-6, "y")
        assert_close(state[:, part], final, 1e-6, "final_state")


@served
def test_gate_and_skip_are_what_they_say(backend: str) -> None:
    drawn = CASE.draw(20, dtype=torch.float32)
    D, z = drawn.pop("D"), drawn.pop("z")
    plain, _ = selective_scan(**drawn, backend=backend)
    y, _ = selective_scan(**drawn, D=D, z=z, backend=backend)
    assert_close(y, (plain + D * drawn["u"]) * F.silu(z), 1e-5, "y")


@served
def test_a_small_step_keeps_its_digits(backend: str) -> None:
    """softplus(-15) is 3.06e-7: a form by log(1 + e) in float32 would be off by a sixth of it."""
    dt = torch.full((1, 1, 1), -15.0)
    one = torch.ones_like(dt)
    y, _ = selective_scan(one, dt, torch.zeros(1, 1), one, one, backend=backend)
    assert_close(y, F.softplus(dt.double()), 1e-6, "y")


def _saved_bytes(tensors: dict[str, Tensor], backend: str) -> int:
    """Return the bytes that a call keeps for its backward pass beyond its arguments."""
    own = {t.untyped_storage().data_ptr() for t in tensors.values()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        selective_scan(**tensors, backend=backend)
    return sum(kept.values())


@pytest.mark.parametrize("backend", [b for b in backends(CASE) if b != "triton"])
def test_keeps_a_state_per_chunk_and_none_without_gradients(backend: str) -> None:
    drawn = {n: t.requires_grad_() for n, t in CASE.draw(640, dtype=torch.float32).items()}
    states = 4 * 2 * 640 * 6 * 3
    assert 0 < _saved_bytes(drawn, backend) <= states / 16
    with torch.no_grad():
        assert _saved_bytes(drawn, backend) == 0
        before = torch.ops.scanweave.selective_scan.default(
            *(drawn[n] for n in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")),
            *(None, None, True, False, False, backend),
        )[2]
    assert before.numel() == 0


@pytest.mark.parametrize("backend", [b for b in backends(CASE) if b != "triton"])
@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("channels", [1, 8, 65, 200])
def test_any_number_of_channels_and_states(backend: str, channels: int, n: int) -> None:
    """Sizes on both sides of a vector's width and of a slice's; several slices share the gradients of B and C."""
    generator = torch.Generator().manual_seed(channels * 100 + n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    drawn = {
        "u": normal(2, 35, channels),
        "dt": normal(2, 35, channels),
        "A": -normal(channels, n).abs(),
        "B": normal(2, 35, n),
        "C": normal(2, 35, n),
        "D": normal(channels),
    }
    for dtype, bounds in ((torch.float32, (1e-5, 1e-4)), (torch.float64, (1e-12, 1e-11))):
        rounded = {name: t.to(dtype) for name, t in drawn.items()}
        y, final, grads = gradients(CASE, rounded, backend=backend)
        wanted = gradients(CASE, {name: t.double() for name, t in rounded.items()}, backend="reference")
        assert_close(y, wanted[0], bounds[0], "y")
        assert_close(final, wanted[1], bounds[0], "final_state")
        for name, gradient in wanted[2].items():
            assert_close(grads[name], gradient, bounds[1], f"gradient of {name}")


@pytest.mark.parametrize("backend", [b for b in backends(CASE) if b != "triton"])
def test_an_empty_batch(backend: str) -> None:
    drawn = {n: t.requires_grad_() for n, t in CASE.draw(5, batch=0, dtype=torch.float32).items()}
    y, final = selective_scan(**drawn, backend=backend)
    assert y.shape == (0, 5, 6)
    assert final.shape == (0, 6, 3)
    found = torch.autograd.grad((y.sum(), final.sum()), list(drawn.values()))
    assert all(g.shape == t.shape and not g.any() for g, t in zip(found, drawn.values(), strict=True))


@served
def test_parameters_stay_in_single_precision_beside_half_inputs(backend: str) -> None:
    """As under autocast: sequences in bfloat16, A, D, dt_bias and the state in float32."""
    drawn = CASE.draw(33, dtype=torch.bfloat16)
    for name in ("A", "D", "dt_bias"):
        drawn[name] = drawn[name].float()
    y, final, grads = gradients(CASE, drawn, backend=backend)
    wanted = gradients(CASE, {n: t.double() for n, t in drawn.items()}, backend="reference")
    assert y.dtype == torch.bfloat16
    assert final.dtype == grads["A"].dtype == torch.float32
    assert grads["B"].dtype == torch.bfloat16
    assert_close(final, wanted[1], 1e-5, "final_state")
    assert_close(grads["A"], wanted[2]["A"], 1e-2, "gradient of A")


def _orders(length: int) -> Tensor:
    """Return two orders: to and fro, and a drawn one."""
    drawn = torch.randperm(length, generator=torch.Generator().manual_seed(1))
    return torch.stack([torch.arange(length).flip(0), drawn])


@served
def test_orders_are_where_groups_read_and_write(backend: str) -> None:
    drawn, orders = CASE.draw(20, dtype=torch.float32), _orders(20)
    y, state = selective_scan(**drawn, orders=orders, backend=backend)
    for group, order in enumerate(orders):
        ordered = {n: t[:, order] if n in CASE.sequences else t for n, t in drawn.items()}
        in_time, final = selective_scan(**ordered, backend=backend)
        channels = slice(3 * group, 3 * group + 3)
        assert_close(y[:, order, channels], in_time[..., channels], 1e-6, "y")
        assert_close(state[:, channels], final[:, channels], 1e-6, "final_state")


@served
@pytest.mark.parametrize("ordered", [False, True])
def test_groups_may_share_their_input(backend: str, ordered: bool) -> None:
    """Views expanded over the groups, and slices of a wider tensor, serve as they lie; so do their gradients."""
    drawn = CASE.draw(37, dtype=torch.float32)
    shared = {n: drawn.pop(n)[..., :3].contiguous() for n in ("u", "z")}
    wide = {n: F.pad(drawn.pop(n), (1, 2)) for n in ("B", "C")}
    leaves = {**shared, **wide, **drawn}
    orders = _orders(37) if ordered else None

    def call(tensors: dict[str, Tensor], backend: str) -> tuple[Tensor, list[Tensor]]:
        given = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        views = dict(given)
        views |= {n: given[n].unsqueeze(2).expand(-1, -1, 2, -1) for n in shared}
        views |= {n: given[n][..., 1:-2] for n in wide}
        views["dt"] = given["dt"].unflatten(2, (2, 3))
        y, state = selective_scan(**views, orders=orders, backend=backend)
        assert y.shape == (*given["u"].shape[:2], 2, 3)
        return y, list(torch.autograd.grad((y.sum(2).square().sum() + state.square().sum()), list(given.values())))

    y, grads = call(leaves, backend)
    wanted, wanted_grads = call({n: t.double() for n, t in leaves.items()}, "reference")
    assert_close(y, wanted, 1e-5, "y")
    for name, found, right in zip(leaves, grads, wanted_grads, strict=True):
        assert_close(found, right, 1e-4, f"gradient of {name}")
