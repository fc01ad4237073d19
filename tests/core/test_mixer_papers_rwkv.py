"""RWKV-7 against its paper's formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from tests.core.papers import draw, make, shifted, stir

softplus, sigmoid = nn.functional.softplus, torch.sigmoid


def rwkv7_formula(mixer, x):
    """The paper's time mix, its state V x K: ``S <- S (Diag(w) - kappa^T (a * kappa)) + v^T k``, ``y = S r``."""
    H, N = mixer.r_k.shape
    mixed = {s: x + (shifted(x) - x) * getattr(mixer, f"x_{s}")[0, 0] for s in "rwkvag"}
    r, k, v = mixer.receptance(mixed["r"]), mixer.key(mixed["k"]), mixer.value(mixed["v"])
    d = mixer.w0[0, 0] + torch.tanh(mixed["w"] @ mixer.w1) @ mixer.w2
    w = torch.exp(-torch.exp(-softplus(-d) - 0.5))
    a = sigmoid(mixer.a0[0, 0] + mixed["a"] @ mixer.a1 @ mixer.a2)
    g = sigmoid(mixed["g"] @ mixer.g1) @ mixer.g2
    removal, replacement = k * mixer.k_k[0, 0], k + k * (a - 1) * mixer.k_a[0, 0]
    p = torch.empty_like(x)
    for h in range(H):
        own, S = slice(h * N, (h + 1) * N), x.new_zeros(N, N)
        gain, offset = mixer.ln_x.weight[own], mixer.ln_x.bias[own]
        for t in range(len(x)):
            kappa = removal[t, own] / removal[t, own].norm()
            S = S @ (torch.diag(w[t, own]) - torch.outer(kappa, a[t, own] * kappa))
            S = S + torch.outer(v[t, own], replacement[t, own])
            o = S @ r[t, own]
            o = (o - o.mean()) / (o.var(correction=0) + 64e-5).sqrt() * gain + offset
            p[t, own] = o + (r[t, own] * mixer.r_k[h] * replacement[t, own]).sum() * v[t, own]
    return mixer.output(p * g)


def test_rwkv7_equals_its_formula():
    mixer, x = stir(make("rwkv7", 8, head_dim=4, decay_rank=3, rate_rank=2, gate_rank=5)), draw(13, 8)
    torch.testing.assert_close(mixer(x[None])[0][0], rwkv7_formula(mixer, x))


def test_rwkv7_starts_as_its_authors_first_layer():
    C, N = 128, 64
    mixer = make("rwkv7", C)
    assert mixer.r_k.shape == (2, N)
    for n in range(C):
        ratio, linear = n / C, n / (C - 1) - 0.5
        zigzag = (n % N - (N - 1) / 2) / ((N - 1) / 2)
        zigzag *= abs(zigzag)
        expected = {
            "x_r": 1 - ratio**0.2,
            "x_w": 1 - ratio**0.9,
            "x_k": 1 - ratio**0.7,
            "x_v": 1 - ratio**0.7,
            "x_a": 1 - ratio**0.9,
            "x_g": 1 - ratio**0.2,
            "w0": -6 + 6 * (n / (C - 1)) + 0.5 + 2.5 * zigzag,
            "a0": -0.19 + 0.3 * zigzag + 0.4 * linear,
            "k_k": 0.71 - 0.1 * linear,
            "k_a": 1.02,
        }
        for name, value in expected.items():
            assert getattr(mixer, name)[0, 0, n] == pytest.approx(value, abs=1e-6), (name, n)
    assert (mixer.r_k == torch.tensor(-0.04).double()).all()
    assert torch.equal(mixer.ln_x.weight, torch.ones(C).double())
    assert torch.equal(mixer.ln_x.bias, torch.zeros(C).double())
    for layer, bound in ((mixer.receptance, 0.5), (mixer.key, 0.05), (mixer.value, 0.5)):
        assert 0.99 * bound / C**0.5 < layer.weight.max() <= bound / C**0.5
    for name, rank in (("w", 32), ("a", 32), ("g", 64)):
        narrow, wide = getattr(mixer, f"{name}1"), getattr(mixer, f"{name}2")
        assert narrow.shape == (C, rank)
        assert narrow.abs().max() <= 1e-4
        torch.testing.assert_close(wide @ wide.T, 0.01 * torch.eye(rank).double(), rtol=0, atol=1e-7)


def test_wrong_arguments_of_rwkv7_are_named():
    with pytest.raises(ConfigError, match="head_dim is 3, expected a divisor of the width 8"):
        create_mixer("rwkv7", 8, head_dim=3)
    with pytest.raises(ConfigError, match="RWKV7: gate_rank is 0, expected at least 1"):
        create_mixer("rwkv7", 8, gate_rank=0)
