"""RWKV-7 and RWKV-4 against their papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from tests.core.papers import draw, make, shifted, stir
from tests.installed import import_peer

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


def rwkv4_formula(mixer, x):
    """The paper's weighted average, each sum written out."""
    mixed = {s: x * m[0, 0] + shifted(x) * (1 - m[0, 0]) for s in "kvr" for m in [getattr(mixer, f"time_mix_{s}")]}
    k, v, r = mixer.key(mixed["k"]), mixer.value(mixed["v"]), mixer.receptance(mixed["r"])
    w, wkv = mixer.time_decay.exp(), torch.empty_like(x)
    for t in range(len(x)):
        weights = [torch.exp(-(t - 1 - i) * w + k[i]) for i in range(t)] + [torch.exp(mixer.time_first + k[t])]
        wkv[t] = sum(weight * v[i] for i, weight in enumerate(weights)) / sum(weights)
    return mixer.output(sigmoid(r) * wkv)


def test_rwkv4_equals_its_formula():
    mixer, x = stir(make("rwkv4", 7)), draw(15, 7)
    torch.testing.assert_close(mixer(x[None])[0][0], rwkv4_formula(mixer, x))


def test_rwkv4_equals_transformers_with_the_same_weights():
    peers = import_peer("transformers.models.rwkv.modeling_rwkv")
    mixer = stir(make("rwkv4", 12)).float()
    peer = peers.RwkvSelfAttention(peers.RwkvConfig(hidden_size=12, num_hidden_layers=2), layer_id=0)
    longer = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance"}
    peer.load_state_dict({longer.get(name, name): value for name, value in mixer.state_dict().items()})
    x = draw(2, 40, 12).float()
    with torch.no_grad():
        torch.testing.assert_close(mixer(x)[0], peer(x)[0], rtol=1e-4, atol=1e-5)


def test_rwkv4_starts_as_its_authors_first_layer():
    C = 9
    mixer = make("rwkv4", C)
    for n in range(C):
        assert mixer.time_decay[n] == pytest.approx(-5 + 8 * (n / (C - 1)) ** 0.7, abs=1e-6)
        assert mixer.time_first[n] == pytest.approx(math.log(0.3) + 0.5 * ((n + 1) % 3 - 1), abs=1e-6)
        assert mixer.time_mix_k[0, 0, n] == mixer.time_mix_v[0, 0, n] == pytest.approx(n / C, abs=1e-6)
        assert mixer.time_mix_r[0, 0, n] == pytest.approx((n / C) ** 0.5, abs=1e-6)
    eye = torch.eye(C, dtype=torch.float64)
    for layer, gain in ((mixer.value, 1), (mixer.key, 0.1), (mixer.receptance, 0.1), (mixer.output, 1)):
        torch.testing.assert_close(layer.weight @ layer.weight.T, gain**2 * eye, rtol=0, atol=1e-5)


def test_rwkv4_starts_empty_however_small_its_first_keys():
    mixer = make("rwkv4", 4)
    mixer.key.weight.copy_(-500 * torch.eye(4))
    mixer.time_mix_k.fill_(1)
    y = mixer(torch.ones(1, 3, 4).double())[0]
    # Equal keys: the first step's average is its own value, and so is each later one's, the inputs being the same.
    value = mixer.value(torch.ones(4).double() * mixer.time_mix_v[0, 0])
    gate = sigmoid(mixer.receptance(torch.ones(4).double() * mixer.time_mix_r[0, 0]))
    torch.testing.assert_close(y[0, 0], mixer.output(gate * value))
    assert torch.isfinite(y).all()


def test_wrong_arguments_of_rwkv7_are_named():
    with pytest.raises(ConfigError, match="head_dim is 3, expected a divisor of the width 8"):
        create_mixer("rwkv7", 8, head_dim=3)
    with pytest.raises(ConfigError, match="RWKV7: gate_rank is 0, expected at least 1"):
        create_mixer("rwkv7", 8, gate_rank=0)
