"""Each mixer against its paper, or against an implementation that people know."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from scanweave.core.ssm.hippo import hippo_normal


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_mamba_equals_mambapy_with_the_same_weights():
    mambapy = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    mixer = create_mixer("mamba", 24)
    peer = mambapy.MambaBlock(mambapy.MambaConfig(d_model=24, n_layers=1))
    peer.load_state_dict(mixer.state_dict())
    x = draw(2, 33, 24).float()
    torch.testing.assert_close(mixer(x)[0], peer(x), rtol=1e-4, atol=1e-5)


def test_mamba_starts_as_its_paper_says():
    torch.manual_seed(0)
    mixer = create_mixer("mamba", 512, d_state=16)
    assert mixer.dt_rank == 32
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(1024, 16))
    assert torch.equal(mixer.D, torch.ones(1024))
    step = nn.functional.softplus(mixer.dt_proj.bias.detach())
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001
    # Log-uniform: the median is the geometric mean of the ends.
    assert 0.8 < step.median() / 1e-2 < 1.25


def test_signed_eigenvalues_let_mamba_flip_its_state():
    torch.manual_seed(0)
    positive, signed = (create_mixer("mamba", 8, eigenvalues=kind).double() for kind in ("positive", "signed"))
    signed.load_state_dict(positive.state_dict())
    with torch.no_grad():
        for mixer in (positive, signed):
            mixer.conv1d.bias.zero_()
            mixer.dt_proj.bias.fill_(3.0)
    conv, scan = signed.initial_state(1, dtype=torch.float64)
    nothing = torch.zeros(1, 1, 8, dtype=torch.float64)
    kept, flipped = (mixer(nothing, (conv, torch.ones_like(scan)))[1][1] for mixer in (positive, signed))
    torch.testing.assert_close(flipped, 2 * kept - 1)
    assert (kept > 0).all()
    assert (flipped < 0).all()


def test_hippo_normal_is_the_diagonal_form_of_legs():
    size = 16
    n = torch.arange(size, dtype=torch.float64)
    legs = -torch.outer((2 * n + 1).sqrt(), (2 * n + 1).sqrt()).tril(-1) - torch.diag(n + 1)
    low_rank = (n + 0.5).sqrt()
    eigenvalues, vectors = hippo_normal(size)
    rebuilt = vectors @ torch.diag(eigenvalues) @ vectors.mH
    torch.testing.assert_close(rebuilt.real, legs + torch.outer(low_rank, low_rank))
    assert rebuilt.imag.abs().max() < 1e-10


def test_s5_equals_the_dense_real_system_it_diagonalises():
    torch.manual_seed(0)
    size, blocks, dim = 8, 2, 4
    mixer = create_mixer("s5", dim, d_state=size * blocks, blocks=blocks).double()
    step = 0.05
    with torch.no_grad():
        mixer.log_step.fill_(math.log(step))
    eigenvalues, vectors = hippo_normal(size)
    A = torch.block_diag(*[(vectors @ torch.diag(eigenvalues) @ vectors.mH).real] * blocks)
    basis = torch.block_diag(*[vectors[:, size // 2 :]] * blocks)
    B = 2 * (basis @ torch.view_as_complex(mixer.B.detach())).real
    C = 2 * (torch.view_as_complex(mixer.C.detach()) @ basis.mH).real
    decay = torch.linalg.matrix_exp(step * A)
    into = torch.linalg.solve(A, (decay - torch.eye(len(A), dtype=A.dtype)) @ B)
    x = draw(1, 40, dim)
    h, outputs = torch.zeros(len(A), dtype=A.dtype), []
    for x_t in x[0]:
        h = decay @ h + into @ x_t
        outputs.append(C @ h + mixer.D * x_t)
    y = nn.functional.gelu(torch.stack(outputs))
    expected = y * torch.sigmoid(mixer.gate(y))
    torch.testing.assert_close(mixer(x)[0][0], expected, rtol=1e-5, atol=1e-6)


def test_s5_refuses_an_odd_block():
    with pytest.raises(ConfigError, match="d_state is 12, expected a multiple of 2 \\* blocks = 8"):
        create_mixer("s5", 4, d_state=12, blocks=4)


def test_lru_equals_its_recurrence():
    torch.manual_seed(0)
    mixer = create_mixer("lru", 6, d_state=10).double()
    decay = torch.polar((-mixer.nu_log.exp()).exp(), mixer.theta_log.exp())
    B, C = torch.view_as_complex(mixer.B.detach()), torch.view_as_complex(mixer.C.detach())
    x = draw(1, 25, 6)
    h, outputs = torch.zeros(10, dtype=torch.complex128), []
    for x_t in x[0]:
        h = decay * h + mixer.gamma_log.exp() * (B @ x_t.to(B.dtype))
        outputs.append((C @ h).real + mixer.D * x_t)
    torch.testing.assert_close(mixer(x)[0][0], torch.stack(outputs))


def test_lru_starts_on_its_ring_with_unit_variance():
    torch.manual_seed(0)
    mixer = create_mixer("lru", 64, d_state=400, r_min=0.5, r_max=0.9, max_phase=0.3).requires_grad_(False)
    radius, phase = (-mixer.nu_log.exp()).exp(), mixer.theta_log.exp()
    assert radius.min() >= 0.5 - 1e-5
    assert radius.max() <= 0.9 + 1e-5
    assert phase.max() <= 0.3
    # Uniform over the ring's area: the mean of the squared radius is the middle of its range.
    assert abs(float(radius.square().mean()) - (0.25 + 0.81) / 2) < 0.03
    torch.testing.assert_close(mixer.gamma_log.exp(), (1 - radius.square()).sqrt(), rtol=1e-3, atol=1e-4)
    state = mixer(torch.randn(64, 100, 64))[1][0]
    # White noise in, B of variance 1 / (2 dim) per part: each complex state has variance 1.
    assert abs(float(state.square().sum(-1).mean()) - 1) < 0.1
    with pytest.raises(ConfigError, match=r"r_min = 0\.9 to r_max = 0\.5"):
        create_mixer("lru", 4, r_min=0.9, r_max=0.5)


def log_space(x, forget, accept, candidate, h0):
    """The paper's parallel form: a cumulative log-sum-exp over log values."""
    log_g = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), nn.functional.logsigmoid(candidate))
    a_star = forget.cumsum(1)
    values = torch.cat([h0.log().unsqueeze(1), accept + log_g - a_star], 1)
    return (a_star + values.logcumsumexp(1)[:, 1:]).exp()


@pytest.mark.parametrize("name", ["mingru", "minlstm"])
def test_min_rnns_equal_the_log_space_form(name):
    torch.manual_seed(0)
    mixer = create_mixer(name, 6, expand=1.5).double()
    x, h0 = 3 * draw(2, 30, 6), draw(2, 9).abs() + 0.1
    logsigmoid = nn.functional.logsigmoid
    candidate, *gates = mixer.in_proj(x).chunk(mixer.gates + 1, -1)
    if name == "mingru":
        forget, accept = logsigmoid(-gates[0]), logsigmoid(gates[0])
    else:
        difference = nn.functional.softplus(-gates[0]) - nn.functional.softplus(-gates[1])
        forget, accept = -nn.functional.softplus(difference), -nn.functional.softplus(-difference)
    h = log_space(x, forget, accept, candidate, h0)
    y, (last,) = mixer(x, (h0,))
    torch.testing.assert_close(y, mixer.out_proj(h))
    torch.testing.assert_close(last, h[:, -1])


@pytest.mark.parametrize(("name", "layer"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_torch_layers_weights_carry_over(name, layer):
    mixer, peer = create_mixer(name, 7), layer(7, 7, batch_first=True)
    mixer.load_state_dict(peer.state_dict())
    x = draw(3, 11, 7).float()
    y, last = mixer(x)
    expected, peer_state = peer(x)
    torch.testing.assert_close(y, expected)
    for part, peer_part in zip(last, peer_state if name == "lstm" else (peer_state,), strict=True):
        torch.testing.assert_close(part, peer_part[0])
