"""The structured state spaces against their papers' equations, step by step and without the package's own parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu

from scanweave.core import ConfigError, create_mixer

from .papers import draw, make, stir


def complex_of(pairs):
    return torch.view_as_complex(pairs.double().contiguous())


def gated(y, layer):
    left, right = layer(y).chunk(2, -1)
    return left * torch.sigmoid(right)


def assert_mixer_equals(mixer, x, expected):
    """Forward over the whole, and step by step."""
    torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-8, atol=1e-9)
    state = mixer.initial_state(len(x), dtype=torch.float64)
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_s4d_is_a_sum_of_exponentials(init, method):
    mixer = stir(make("s4d", 5, d_state=6, init=init, method=method))
    x, length = draw(2, 21, 5), 21
    A = -mixer.ssm.log_A_real.exp() + 1j * mixer.ssm.A_imag
    dt, C = mixer.ssm.log_dt.exp()[:, None], complex_of(mixer.ssm.C)
    if method == "zoh":
        decay, gain = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    else:
        decay, gain = (1 + dt / 2 * A) / (1 - dt / 2 * A), dt / (1 - dt / 2 * A)
    kernel = torch.stack([2 * (C * gain * decay**power).sum(1).real for power in range(length)])
    y = torch.stack([sum(kernel[t - s] * x[:, s] for s in range(t + 1)) for t in range(length)], 1)
    assert_mixer_equals(mixer, x, gated(gelu(y + mixer.D * x), mixer.out_proj))


@pytest.mark.parametrize("kernel", ["powers", "cauchy"])
def test_s4_is_the_bilinear_form_of_the_full_matrix(kernel):
    mixer = stir(make("s4", 4, d_state=6, kernel=kernel))
    x, outputs = draw(2, 19, 4), []
    poles, P, B, C = mixer.poles(), *(complex_of(part) for part in (mixer.P, mixer.B, mixer.C))
    poles, P, B, C = (torch.cat([part, part.conj()], 1) for part in (poles, P, B, C))
    A = torch.diag_embed(poles) - P.unsqueeze(2) * P.conj().unsqueeze(1)
    dt, eye = mixer.log_dt.exp()[:, None, None], torch.eye(6)
    inverse = torch.linalg.inv(eye - dt / 2 * A)
    Abar, Bbar = inverse @ (eye + dt / 2 * A), (inverse @ (dt * B.unsqueeze(2))).squeeze(2)
    state = torch.zeros(2, 4, 6, dtype=torch.complex128)
    for x_t in x.unbind(1):
        state = torch.einsum("cij,bcj->bci", Abar, state) + Bbar * x_t.unsqueeze(-1)
        y = (C * state).sum(-1)
        assert y.imag.abs().max() < 1e-12
        outputs.append(y.real)
    y = torch.stack(outputs, 1)
    assert_mixer_equals(mixer, x, gated(gelu(y + mixer.D * x), mixer.out_proj))


def test_s4_starts_as_hippo_legs():
    mixer = make("s4", 2, d_state=16)
    poles, P, B = (part[0] for part in (mixer.poles(), complex_of(mixer.P), complex_of(mixer.B)))
    poles, P, B = (torch.cat([part, part.conj()]) for part in (poles, P, B))
    spectrum = torch.linalg.eigvals(torch.diag(poles) - torch.outer(P, P.conj()))
    # A is triangular with -1, -2, .., -N on its diagonal; its eigenvalues are ill-conditioned.
    traces = [float((spectrum**power).sum().real) for power in (1, 2, 3)]
    expected = [sum((-n) ** power for n in range(1, 17)) for power in (1, 2, 3)]
    assert traces == pytest.approx(expected, rel=1e-4)
    assert float(B.abs().square().sum()) == pytest.approx(sum(2 * n + 1 for n in range(16)), rel=1e-5)
    steps = create_mixer("s4", 512).log_dt.detach().exp()
    assert steps.min() >= 1e-3 * 0.999
    assert steps.max() <= 1e-1 * 1.001
    assert 0.8 < float(steps.median()) / 1e-2 < 1.25


@pytest.mark.parametrize("measure", ["legs", "legt"])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_lssl_is_a_dense_system_per_feature(measure, method):
    mixer = stir(make("lssl", 4, d_state=5, measure=measure, method=method, groups=2, learned=True))
    x, outputs = draw(2, 17, 4), []
    state = torch.zeros(2, 4, 5, dtype=torch.float64)
    eye = torch.eye(5, dtype=torch.float64)
    pairs = []
    for feature in range(4):
        A, B, dt = mixer.A[feature // 2], mixer.B[feature // 2], float(mixer.log_dt[feature].exp())
        if method == "zoh":
            pairs.append((torch.linalg.matrix_exp(dt * A), torch.linalg.inv(A)))
            pairs[-1] = (pairs[-1][0], pairs[-1][1] @ (pairs[-1][0] - eye) @ B)
        else:
            inverse = torch.linalg.inv(eye - dt / 2 * A)
            pairs.append((inverse @ (eye + dt / 2 * A), inverse @ B * dt))
    Abar, Bbar = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    for x_t in x.unbind(1):
        state = torch.einsum("cij,bcj->bci", Abar, state) + Bbar * x_t.unsqueeze(-1)
        outputs.append((mixer.C * state).sum(-1))
    y = torch.stack(outputs, 1)
    assert_mixer_equals(mixer, x, mixer.out_proj(gelu(y + mixer.D * x)))


def test_lssls_matrices_stay_as_they_are_unless_learned():
    fixed, learned = make("lssl", 4), make("lssl", 4, learned=True)
    assert {name for name, _ in learned.named_parameters()} - {name for name, _ in fixed.named_parameters()} == {
        "A",
        "B",
    }
    assert fixed.state_dict().keys() == learned.state_dict().keys()
    root = torch.tensor([math.sqrt(2 * n + 1) for n in range(32)])
    torch.testing.assert_close(fixed.B[0], root.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("head_dim", [1, 2, 3])
def test_h3_multiplies_shifted_keys_with_values_and_reads_by_queries(head_dim):
    mixer = stir(make("h3", 6, d_state=4, d_shift=3, head_dim=head_dim))
    x, length, heads = draw(2, 15, 6), 15, 6 // head_dim
    q, k, v = mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)
    # A shift matrix moves the newest input down by one place a step; C reads every place.
    shift = torch.diag(torch.ones(2, dtype=torch.float64), -1)
    held, first = torch.zeros(2, 6, 3, dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64)
    remembered = []
    for k_t in k.unbind(1):
        held = torch.einsum("ij,bcj->bci", shift, held) + first * k_t.unsqueeze(-1)
        remembered.append((mixer.shift.flip(1) * held).sum(-1) + mixer.D_k * k_t)
    q, k, v = (part.unflatten(-1, (heads, head_dim)) for part in (q, torch.stack(remembered, 1), v))
    A = -mixer.ssm.log_A_real.exp() + 1j * mixer.ssm.A_imag
    dt, C = mixer.ssm.log_dt.exp()[:, None], complex_of(mixer.ssm.C)
    decay, gain = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    state = torch.zeros(2, heads, head_dim, head_dim, 2, dtype=torch.complex128)
    outputs = []
    for t in range(length):
        outer = torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
        state = decay[:, None, None] * state + gain[:, None, None] * outer.unsqueeze(-1)
        y = 2 * (C[:, None, None] * state).sum(-1).real + mixer.D[:, None, None] * outer
        outputs.append(torch.einsum("bhi,bhij->bhj", q[:, t], y).flatten(1))
    assert_mixer_equals(mixer, x, mixer.out_proj(torch.stack(outputs, 1)))


def test_h3_refuses_a_head_that_does_not_divide():
    with pytest.raises(ConfigError, match="H3: head_dim is 4, expected a divisor of the width 6"):
        create_mixer("h3", 6, head_dim=4)
