"""Structured state spaces: matrices and discretisation against their definitions, kernels against plain powers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from scanweave.core import ConfigError, create_mixer
from scanweave.core.ssm import nplr
from scanweave.core.ssm.convolution import causal_convolution, fast_length, run_system
from scanweave.core.ssm.discretise import discretise_dense, discretise_diagonal
from scanweave.core.ssm.hippo import diagonal_poles, legs, legs_nplr, legt
from scanweave.core.ssm.system import Dense, Diagonal
from scanweave.kernels import linear_scan

CHANNELS, SIZE = 3, 8


def draw(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def steps(channels=CHANNELS):
    return torch.logspace(-3, -1, channels, dtype=torch.float64)


def error(got, expected):
    """Largest difference, as a share of the largest expected entry."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).abs().max() / expected.abs().max())


def dense_system(measure=legs, size=SIZE, channels=CHANNELS):
    A, B = (part.expand(channels, *part.shape) for part in measure(size))
    return Dense(*discretise_dense(A, B, steps(channels), "bilinear"), draw(channels, size))


def diagonal_system(init="lin", method="zoh", size=SIZE, channels=CHANNELS, dtype=torch.complex128):
    poles = diagonal_poles(init, size // 2).expand(channels, -1)
    C = draw(channels, size // 2, dtype=dtype).to(torch.complex128)
    return Diagonal(*discretise_diagonal(poles, steps(channels).unsqueeze(1), method), C)


def nplr_system(size=SIZE, channels=CHANNELS, cauchy=False):
    poles, P, B = (part.expand(channels, -1) for part in legs_nplr(size))
    C = draw(channels, size // 2, dtype=torch.complex128)
    return nplr.NPLR(poles, P, B, C, steps(channels).unsqueeze(1), cauchy)


SYSTEMS = {
    "dense": dense_system,
    "diagonal": diagonal_system,
    "nplr": nplr_system,
    "cauchy": partial(nplr_system, cauchy=True),
}


def matrices(system):
    """The full A of each channel, from its action on the unit vectors."""
    unit = torch.eye(system.B.shape[1], dtype=system.B.dtype).expand(len(system.B), -1, -1)
    return system.advance(unit.contiguous(), 1)


def power_loop(A, B, C, length):
    kernel, x = [], B
    for _ in range(length):
        kernel.append((C * x).sum(1))
        x = (A @ x.unsqueeze(-1)).squeeze(-1)
    return torch.stack(kernel, 1)


def test_legs_coefficients_follow_the_integral_over_the_past():
    # c_n = (1/t) int_0^t u(s) sqrt(2n+1) P_n(2s/t - 1) ds obeys t c' = A c + B u, tried on u(s) = s^3.
    A, B = legs(6)
    nodes, weights = np.polynomial.legendre.leggauss(12)

    def coefficients(t):
        s = t * (nodes + 1) / 2
        basis = [math.sqrt(2 * n + 1) * np.polynomial.legendre.Legendre.basis(n)(nodes) for n in range(6)]
        return torch.tensor([float((weights / 2 * s**3 * g).sum()) for g in basis], dtype=torch.float64)

    t, h = 1.3, 1e-4
    slope = (coefficients(t + h) - coefficients(t - h)) / (2 * h)
    torch.testing.assert_close(t * slope, A @ coefficients(t) + B * t**3, rtol=1e-6, atol=1e-6)


def test_legt_remembers_a_window_and_delays():
    size, dt = 24, 1 / 400
    A, B = (part.unsqueeze(0) for part in legt(size))
    Abar, Bbar = discretise_dense(A, B, torch.tensor([dt], dtype=torch.float64), "zoh")
    times = dt * torch.arange(1, 1201, dtype=torch.float64)

    def signal(t):
        return torch.sin(4 * t) + 0.5 * torch.cos(9 * t)

    x = torch.zeros(size, dtype=torch.float64)
    for u in signal(times - dt / 2):
        x = Abar[0] @ x + Bbar[0] * u
    for delay in (0.1, 0.5, 0.9):
        basis = [math.sqrt(2 * n + 1) * np.polynomial.legendre.Legendre.basis(n)(1 - 2 * delay) for n in range(size)]
        read = torch.tensor(basis, dtype=torch.float64) @ x
        assert abs(float(read - signal(times[-1] - delay))) < 5e-3


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_diagonal_less_a_rank_one_product_is_legs(size):
    A, B = legs(size)
    half, P, into = legs_nplr(size)
    poles, P, into = (torch.cat([part, part.conj()]) for part in (half, P, into))
    turned = torch.diag(poles) - torch.outer(P, P.conj())
    # The basis is unknown here: what does not depend on it must agree.
    for exponent in range(4):
        power = torch.linalg.matrix_power(A / size, exponent)
        turned_power = torch.linalg.matrix_power(turned / size, exponent)
        got, expected = into.conj() @ turned_power @ into, B @ power @ B
        assert abs(complex(got - expected)) < 1e-10 * abs(float(B @ B))
        got, root = P.conj() @ turned_power @ into, (torch.arange(size, dtype=torch.float64) + 0.5).sqrt()
        assert abs(complex(got - root @ power @ B)) < 1e-10 * abs(float(B @ B))


def test_initial_poles_are_the_papers():
    n = np.arange(4)
    np.testing.assert_allclose(diagonal_poles("lin", 4).numpy(), -0.5 + 1j * np.pi * n)
    np.testing.assert_allclose(diagonal_poles("inv", 4).numpy(), -0.5 + 1j * 8 / np.pi * (8 / (2 * n + 1) - 1))
    A = legs(8)[0].numpy()
    root = np.sqrt(np.arange(8) + 0.5)
    normal = np.linalg.eigvals(A + np.outer(root, root))
    expected = normal[normal.imag > 0]
    np.testing.assert_allclose(diagonal_poles("legs", 4).numpy(), expected[np.argsort(expected.imag)], atol=1e-10)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_discretisation_equals_scipys(method):
    A, B = legs(5)
    dt = steps()
    Abar, Bbar = discretise_dense(A.expand(3, 5, 5), B.expand(3, 5), dt, method)
    poles = diagonal_poles("inv", 3)
    log_decay, gain = discretise_diagonal(poles.expand(3, 3), dt.unsqueeze(1), method)
    for c in range(3):
        system = (A.numpy(), B[:, None].numpy(), np.eye(5), np.zeros((5, 1)))
        expected = cont2discrete(system, float(dt[c]), method)
        np.testing.assert_allclose(Abar[c].numpy(), expected[0], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(Bbar[c].numpy(), expected[1][:, 0], rtol=1e-10, atol=1e-12)
        system = (np.diag(poles.numpy()), np.ones((3, 1)), np.eye(3), np.zeros((3, 1)))
        expected = cont2discrete(system, float(dt[c]), method)
        np.testing.assert_allclose(log_decay[c].exp().numpy(), np.diag(expected[0]), rtol=1e-10)
        np.testing.assert_allclose(gain[c].numpy(), expected[1][:, 0], rtol=1e-10)


@pytest.mark.parametrize("cauchy", [False, True])
def test_nplr_is_the_bilinear_form_of_legs(cauchy):
    # Impulse responses do not depend on the basis: read through V^* B itself.
    poles, P, B = (part.expand(CHANNELS, -1) for part in legs_nplr(SIZE))
    system = nplr.NPLR(poles, P, B, B.conj(), steps().unsqueeze(1), cauchy)
    A, B = (part.expand(CHANNELS, *part.shape) for part in legs(SIZE))
    Abar, Bbar = discretise_dense(A, B, steps(), "bilinear")
    assert error(system.kernel(200), power_loop(Abar, Bbar, B, 200)) < 1e-10


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("length", [1, 2, 63, 100, 257])
def test_kernels_equal_the_loop_over_powers(kind, length):
    system = SYSTEMS[kind](size=16)
    expected = power_loop(matrices(system), system.B, system.C, length)
    assert error(system.kernel(length), expected) < 1e-10


def test_s4s_kernel_in_blocks_of_frequencies(monkeypatch):
    mixer = create_mixer("s4", 4, kernel="cauchy")
    system = mixer.system()
    whole = system.kernel(300)
    expected = power_loop(matrices(system), system.B, system.C, 300)
    assert error(whole.float(), expected) < 1e-5
    gradient = torch.autograd.grad(whole.square().sum(), list(mixer.parameters())[1:5], allow_unused=True)
    monkeypatch.setattr(nplr, "CAUCHY_BLOCK", 4 * 32 * 40)
    blocks = mixer.system().kernel(300)
    torch.testing.assert_close(blocks, whole)
    again = torch.autograd.grad(blocks.square().sum(), list(mixer.parameters())[1:5], allow_unused=True)
    for got, want in zip(again, gradient, strict=True):
        assert got is not None
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 64, 129])
def test_convolution_equals_the_sum(length):
    u, kernel = draw(2, 3, length), draw(2, length, seed=2)
    expected = torch.stack([(u[..., : t + 1] * kernel[:, None, : t + 1].flip(-1)).sum(-1) for t in range(length)], -1)
    torch.testing.assert_close(causal_convolution(u, kernel), expected)


def test_transforms_have_fast_lengths():
    for least in range(1, 300):
        size = fast_length(least)
        odd = size
        while odd % 2 == 0:
            odd //= 2
        assert size >= least
        assert odd in (1, 3, 5, 9)
    assert [fast_length(n) for n in (1, 17, 31, 33, 127, 129)] == [1, 18, 32, 36, 128, 144]


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("length", [5, 50, 131])
def test_restarts_in_blocks_equal_the_loop(kind, length):
    system = SYSTEMS[kind]()
    A, size = matrices(system), system.B.shape[1]
    u, state = draw(2, length, CHANNELS), draw(2, CHANNELS, size, seed=2)
    reset = torch.rand(2, length, generator=torch.Generator().manual_seed(5)) < 0.05
    reset[1, length // 2 :] = False
    for starts in (None, reset):
        x, outputs = state, []
        for t in range(length):
            if starts is not None:
                x = x.masked_fill(starts[:, t, None, None], 0)
            x = torch.einsum("cij,bcj->bci", A, x) + system.B * u[:, t, :, None]
            outputs.append((system.C * x).sum(-1))
        y, last = run_system(system, u, state, starts)
        torch.testing.assert_close(y, torch.stack(outputs, 1))
        torch.testing.assert_close(last, x)


@torch.no_grad()
def test_s4ds_convolution_equals_its_recurrence_over_16384_steps():
    torch.manual_seed(0)
    mixer, length = create_mixer("s4d", 3), 16384
    system = mixer.system()
    u = torch.zeros(2, length, 3)
    u[0, 0] = 1
    u[1] = draw(length, 3, dtype=torch.float32)
    by_fft, last = run_system(system, u, torch.zeros(2, 3, 64), None)
    B, C = (part[:, 0::2] + 1j * part[:, 1::2] for part in (system.B, system.C))
    x, _ = linear_scan(system.log_decay.exp(), B * u.unsqueeze(-1))
    exact = (C.conj() * x).sum(-1).real
    state, single = torch.zeros(2, 3, 64), []
    for u_t in u.split(1, 1):
        y, state = run_system(system, u_t, state, None)
        single.append(y)
    single = torch.cat(single, 1)
    for row in range(2):
        for channel in range(3):
            where = row, slice(None), channel
            assert error(by_fft[where], exact[where]) < 1e-5
            assert error(by_fft[where], single[where]) < 1e-5
    assert error(last, state) < 1e-5


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="S4D: d_state is 7, expected an even number"):
        create_mixer("s4d", 4, d_state=7)
    with pytest.raises(ConfigError, match="S4D: init is 'line', expected lin, inv or legs"):
        create_mixer("s4d", 4, init="line")
    with pytest.raises(ConfigError, match="H3: method is 'euler', expected zoh or bilinear"):
        create_mixer("h3", 4, method="euler")
    with pytest.raises(ConfigError, match="S4: kernel is 'cauchi', expected powers or cauchy"):
        create_mixer("s4", 4, kernel="cauchi")
    with pytest.raises(ConfigError, match="LSSL: measure is 'legx', expected legs or legt"):
        create_mixer("lssl", 4, measure="legx")
    with pytest.raises(ConfigError, match=r"groups is 3, expected .* a divisor of dim = 4"):
        create_mixer("lssl", 4, groups=3)
