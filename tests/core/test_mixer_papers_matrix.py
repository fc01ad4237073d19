"""The mixers whose state is a decaying matrix, each against its paper's formulas; and every mixer's forms of its op."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import nn

from scanweave import kernels
from scanweave.core import ConfigError, create_mixer, list_mixers
from scanweave.core.heads import HeadNorm
from scanweave.core.optimizers import parameter_groups
from tests.core.papers import convolved, draw, make, shifted, stir
from tests.installed import import_peer

silu, softplus, sigmoid = nn.functional.silu, nn.functional.softplus, torch.sigmoid


def rms(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def retention_formula(mixer, x):
    """The paper's parallel form in complex numbers: ``(Q e^{i n theta} (K e^{i m theta})^* * gamma^(n-m)) V``."""
    L, H, K = len(x), mixer.heads, mixer.dim // mixer.heads
    q, k, v = (project(x).reshape(L, H, -1) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    n = torch.arange(L, dtype=x.dtype)
    theta = torch.tensor([10000 ** -(i / max(K // 2 - 1, 1)) for i in range(K // 2)], dtype=x.dtype)
    turn = torch.polar(torch.ones(L, K // 2, dtype=x.dtype), torch.outer(n, theta))
    outputs = []
    for h in range(H):
        z = [torch.complex(part[:, h, : K // 2 * 2 : 2], part[:, h, 1::2]) * turn for part in (q, k)]
        scores = (z[0] @ z[1].mH).real
        if K % 2:
            scores = scores + torch.outer(q[:, h, -1], k[:, h, -1])
        distance = n[:, None] - n
        decay = torch.where(distance >= 0, (1 - 2.0 ** (-5 - h)) ** distance.clamp(min=0), 0)
        outputs.append((scores / K**0.5 * decay) @ v[:, h])
    y = nn.functional.group_norm(torch.cat(outputs, -1), H, eps=1e-6)
    return mixer.out_proj(y if mixer.g_proj is None else silu(mixer.g_proj(x)) * y)


def gla_formula(mixer, x):
    """``S_t = (alpha_t^T 1) * S_{t-1} + k_t^T v_t``, ``o_t = q_t S_t``, ``alpha = sigmoid(x W_1 W_2 + b)^(1/16)``."""
    L, H = len(x), mixer.heads
    q, k, v = (project(x).reshape(L, H, -1) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    low, high = mixer.gk_proj
    alpha = sigmoid(x @ low.weight.T @ high.weight.T + high.bias).reshape(L, H, -1) ** (1 / 16)
    outputs = []
    for h in range(H):
        S = x.new_zeros(q.shape[2], v.shape[2])
        for t in range(L):
            S = alpha[t, h][:, None] * S + torch.outer(k[t, h], v[t, h])
            outputs.append(rms(q[t, h] @ S / q.shape[2] ** 0.5, mixer.g_norm_swish_gate.weight, 1e-5))
    o = torch.stack(outputs).reshape(H, L, -1).transpose(0, 1).flatten(1)
    return mixer.o_proj(o * silu(mixer.g_proj(x)))


def mamba2_formula(mixer, x):
    """State space duality: ``Y = (L * C B^T) (dt X)``, ``L_ij = a_i ... a_{j+1}``, one such matrix per head."""
    L, H, G, N = len(x), mixer.heads, mixer.groups, mixer.d_state
    width = mixer.out_proj.in_features
    z, mixed, dt = mixer.in_proj(x).split([width, width + 2 * G * N, H], -1)
    X, B, C = convolved(mixed, mixer.conv1d).split([width, G * N, G * N], -1)
    X, B, C, dt = X.reshape(L, H, -1), B.reshape(L, G, N), C.reshape(L, G, N), softplus(dt + mixer.dt_bias)
    outputs = []
    for h in range(H):
        g, a = h * G // H, torch.exp(-dt[:, h] * mixer.A_log[h].exp())
        M = x.new_zeros(L, L)
        for i in range(L):
            for j in range(i + 1):
                M[i, j] = a[j + 1 : i + 1].prod() * (C[i, g] @ B[j, g])
        outputs.append(M @ (dt[:, h, None] * X[:, h]) + mixer.D[h] * X[:, h])
    y = (torch.cat(outputs, -1) * silu(z)).reshape(L, G, -1)
    return mixer.out_proj(rms(y, mixer.norm.weight.reshape(G, -1), 1e-5).flatten(1))


def mlstm_formula(mixer, x):
    """The paper's recurrence as it stands, without the stabiliser: ``h = C q / max(|n^T q|, 1)``."""
    u, z = mixer.proj_up(x).chunk(2, -1)
    c = convolved(u, mixer.conv1d.conv)
    q, k, v = (
        nn.functional.linear(of, torch.block_diag(*layer.weight), layer.bias)
        for of, layer in ((c, mixer.q_proj), (c, mixer.k_proj), (u, mixer.v_proj))
    )
    cell = mixer.mlstm_cell
    gates = torch.cat([q, k, v], -1)
    i, f = cell.igate(gates).exp(), sigmoid(cell.fgate(gates))
    H, width = cell.heads, q.shape[1]
    d = width // H
    h = torch.empty_like(q)
    for head in range(H):
        own, C, n = slice(head * d, (head + 1) * d), x.new_zeros(d, d), x.new_zeros(d)
        for t in range(len(x)):
            key = k[t, own] / d**0.5
            C = f[t, head] * C + i[t, head] * torch.outer(v[t, own], key)
            n = f[t, head] * n + i[t, head] * key
            h[t, own] = C @ q[t, own] / max(abs(n @ q[t, own]), 1)
    h = nn.functional.group_norm(h, H, 1 + cell.outnorm.weight, cell.outnorm.bias, eps=1e-5)
    return mixer.proj_down((h + mixer.learnable_skip * c) * silu(z))


def rwkv6_formula(mixer, x):
    """``wkv_t = diag(u) k_t^T v_t + sum_{i<t} diag(w_{i+1} * ... * w_{t-1}) k_i^T v_i``, the sum written out."""
    H, N = mixer.time_faaaa.shape
    before = shifted(x)
    low = torch.tanh((x + (before - x) * mixer.time_maa_x[0, 0]) @ mixer.time_maa_w1).chunk(5, -1)
    xw, xk, xv, xr, xg = (
        x + (before - x) * (getattr(mixer, f"time_maa_{name}")[0, 0] + low[i] @ mixer.time_maa_w2[i])
        for i, name in enumerate("wkvrg")
    )
    d = mixer.time_decay[0, 0] + torch.tanh(xw @ mixer.time_decay_w1) @ mixer.time_decay_w2
    w = torch.exp(-torch.exp(d))
    r, k, v, g = mixer.receptance(xr), mixer.key(xk), mixer.value(xv), silu(mixer.gate(xg))
    o = torch.empty_like(x)
    for h in range(H):
        own = slice(h * N, (h + 1) * N)
        for t in range(len(x)):
            wkv = torch.outer(mixer.time_faaaa[h] * k[t, own], v[t, own])
            for i in range(t):
                wkv = wkv + torch.outer(w[i + 1 : t, own].prod(0) * k[i, own], v[i, own])
            o[t, own] = r[t, own] @ wkv
    o = nn.functional.group_norm(o, H, mixer.ln_x.weight, mixer.ln_x.bias, eps=64e-5)
    return mixer.output(o * g)


@pytest.mark.parametrize(
    ("name", "formula", "arguments"),
    [
        ("retention", retention_formula, {"head_dim": 4}),
        ("retention", retention_formula, {"head_dim": 3, "expand_v": 1}),
        ("retention", retention_formula, {"head_dim": 6, "gate": False}),
        ("gla", gla_formula, {"head_dim": 4, "gate_rank": 3}),
        ("gla", gla_formula, {"head_dim": 6, "expand_k": 1.0, "expand_v": 0.5}),
        ("mamba2", mamba2_formula, {"head_dim": 6, "d_state": 5}),
        ("mamba2", mamba2_formula, {"head_dim": 4, "d_state": 3, "groups": 3, "d_conv": 2}),
        ("mlstm", mlstm_formula, {"head_dim": 8}),
        ("mlstm", mlstm_formula, {"head_dim": 12, "block_size": 3, "d_conv": 3}),
        ("mlstm", mlstm_formula, {"head_dim": 12, "bias": True}),
        ("rwkv6", rwkv6_formula, {"head_dim": 4, "mix_rank": 3, "decay_rank": 2}),
    ],
)
def test_mixers_equal_their_papers_formulas(name, formula, arguments):
    mixer, x = stir(make(name, 12, **arguments)), draw(15, 12)
    torch.testing.assert_close(mixer(x[None])[0][0], formula(mixer, x))


@pytest.mark.parametrize(
    ("name", "arguments", "shapes"),
    [
        (
            "retention",
            {"head_dim": 256},
            {"q_proj": (512, 512), "k_proj": (512, 512), "v_proj": (1024, 512), "g_proj": (1024, 512)}
            | {"out_proj": (512, 1024)},
        ),
        (
            "gla",
            {"head_dim": 128},
            {"q_proj": (256, 512), "k_proj": (256, 512), "v_proj": (512, 512), "g_proj": (512, 512)}
            | {"gk_proj.0": (16, 512), "gk_proj.1": (256, 16), "gk_proj.1.bias": (256,)}
            | {"g_norm_swish_gate": (128,), "o_proj": (512, 512)},
        ),
        (
            "mamba2",
            {"groups": 2},
            {"in_proj": (2048 + 2 * 2 * 128 + 16, 512), "conv1d": (1536, 1, 4), "conv1d.bias": (1536,)}
            | {"dt_bias": (16,), "A_log": (16,), "D": (16,), "norm": (1024,), "out_proj": (512, 1024)},
        ),
        (
            "rwkv6",
            {},
            {f"time_maa_{part}": (1, 1, 512) for part in "xwkvrg"}
            | {"time_maa_w1": (512, 160), "time_maa_w2": (5, 32, 512), "time_faaaa": (8, 64)}
            | {"time_decay": (1, 1, 512), "time_decay_w1": (512, 64), "time_decay_w2": (64, 512)}
            | dict.fromkeys(("receptance", "key", "value", "gate", "output"), (512, 512))
            | {"ln_x": (512,), "ln_x.bias": (512,)},
        ),
    ],
)
def test_parameters_have_the_published_names_and_shapes(name, arguments, shapes):
    got = {key: tuple(value.shape) for key, value in make(name, 512, **arguments).state_dict().items()}
    assert {key.removesuffix(".weight"): shape for key, shape in got.items()} == shapes


def test_mlstm_equals_the_authors_layer_with_its_weights():
    layers = import_peer("xlstm.blocks.mlstm.layer")
    torch.manual_seed(1)
    config = layers.mLSTMLayerConfig(embedding_dim=64, num_heads=4, context_length=40)
    peer = stir(layers.mLSTMLayer(config).double().requires_grad_(False))
    mixer = make("mlstm", 64, head_dim=32)
    mixer.load_state_dict(peer.state_dict())
    x = draw(2, 40, 64)
    # The peer adds 1e-6 to the normaliser.
    torch.testing.assert_close(mixer(x)[0], peer(x), rtol=1e-4, atol=1e-4)


def test_mamba2_equals_transformers_layer_with_the_same_weights():
    peers = import_peer("transformers.models.mamba2.modeling_mamba2")
    config = peers.Mamba2Config(
        hidden_size=32, num_heads=8, head_dim=8, state_size=16, n_groups=1, conv_kernel=4, expand=2, chunk_size=16
    )
    mixer, peer = stir(make("mamba2", 32, head_dim=8, d_state=16)).float(), peers.Mamba2Mixer(config, 0).eval()
    peer.load_state_dict(mixer.state_dict())
    x = draw(2, 50, 32).float()
    torch.testing.assert_close(mixer(x)[0], peer(x), rtol=1e-4, atol=1e-5)


def test_retention_starts_as_its_authors_release():
    mixer = make("retention", 256, head_dim=32)
    decay = mixer.log_decay(draw(1)).exp()
    torch.testing.assert_close(decay, 1 - 2.0 ** torch.arange(-5, -13, -1, dtype=torch.float64))
    for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj, mixer.out_proj):
        gain = 1 if layer is mixer.out_proj else 2**-2.5
        bound = gain * math.sqrt(6 / sum(layer.weight.shape))
        assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_gla_starts_as_its_authors_release():
    mixer = make("gla", 256, head_dim=64)
    for layer in (mixer.q_proj, mixer.k_proj, *mixer.gk_proj):
        bound = 2**-2.5 * math.sqrt(6 / sum(layer.weight.shape))
        assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert torch.equal(mixer.g_norm_swish_gate.weight, torch.ones(64).double())
    # The decays of gates near 0: 0.5^(1/16).
    kept = sigmoid(mixer.gk_proj(draw(100, 256))) ** (1 / 16)
    assert abs(float(kept.mean()) - 0.9576) < 0.01


def test_mamba2_starts_as_its_authors_release():
    mixer = make("mamba2", 2048, d_state=16, head_dim=4)
    A, step = mixer.A_log.exp(), softplus(mixer.dt_bias)
    assert 1 <= A.min() < 1.2
    assert 15.8 < A.max() <= 16 + 1e-5
    assert abs(float(A.mean()) - 8.5) < 0.5
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001
    assert 0.8 < step.median() / 1e-2 < 1.25
    assert torch.equal(mixer.D, torch.ones(1024).double())


def test_mlstm_starts_as_its_authors_release():
    mixer = make("mlstm", 512, head_dim=2)
    cell, std = mixer.mlstm_cell, math.sqrt(2 / (5 * 512))
    torch.testing.assert_close(cell.fgate.bias, torch.linspace(3, 6, 512).double())
    assert abs(float(cell.igate.bias.std()) - 0.1) < 0.01
    assert abs(float(cell.igate.bias.mean())) < 0.02
    for zero in (cell.igate.weight, cell.fgate.weight, cell.outnorm.weight):
        assert not zero.any()
    assert torch.equal(mixer.learnable_skip, torch.ones(1024).double())
    assert mixer.q_proj.weight.shape == (256, 4, 4)
    for layer in (mixer.proj_up, mixer.q_proj, mixer.k_proj, mixer.v_proj):
        assert abs(float(layer.weight.std()) / std - 1) < 0.05
    assert abs(float(mixer.proj_down.weight.std()) * math.sqrt(512) / 2 - 1) < 0.05


def test_rwkv6_starts_as_its_authors_first_layer():
    C = 128
    mixer = make("rwkv6", C)
    assert mixer.time_faaaa.shape == (2, 64)
    for n in range(C):
        for name in "xwkv":
            assert getattr(mixer, f"time_maa_{name}")[0, 0, n] == pytest.approx(1 - n / C, abs=1e-6)
        for name in "rg":
            assert getattr(mixer, f"time_maa_{name}")[0, 0, n] == pytest.approx(1 - (n / C) ** 0.5, abs=1e-6)
        assert mixer.time_decay[0, 0, n] == pytest.approx(-6 + 5 * (n / (C - 1)) ** 0.7, abs=1e-5)
        assert mixer.time_faaaa[n // 64, n % 64] == pytest.approx(0.1 * ((n + 1) % 3 - 1), abs=1e-6)
    for name in ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"):
        assert 0 < getattr(mixer, name).abs().max() <= 1e-4
    for layer, gain in ((mixer.receptance, 1), (mixer.key, 0.1), (mixer.value, 1), (mixer.gate, 0.1)):
        torch.testing.assert_close(
            layer.weight @ layer.weight.T, gain**2 * torch.eye(C).double(), rtol=0, atol=1e-5 * gain**2
        )


def test_retention_counts_positions_through_splits_and_resets():
    mixer, x = make("retention", 8, head_dim=4), draw(2, 12, 8)
    assert mixer.initial_state(2)[0].tolist() == [0, 0]
    _, part = mixer(x[:, :7])
    assert part[0].tolist() == [7, 7]
    y, last = mixer(x[:, 7:], part)
    assert last[0].tolist() == [12, 12]
    torch.testing.assert_close(y, mixer(x)[0][:, 7:])
    reset = torch.zeros(2, 5, dtype=torch.bool)
    reset[0, 0] = reset[0, 3] = reset[1, 1] = True
    y, last = mixer(x[:, 7:], part, reset)
    assert last[0].tolist() == [2, 4]
    torch.testing.assert_close(y[0, 3:], mixer(x[:1, 10:])[0][0])
    torch.testing.assert_close(y[1, 1:], mixer(x[1:, 8:])[0][0])
    # The first step of the second row goes on at position 7.
    torch.testing.assert_close(y[1, 0], mixer(x)[0][1, 7])


def test_retention_depends_on_distances_alone():
    mixer, x = make("retention", 8, head_dim=4), draw(1, 20, 8)
    count, scan = mixer.initial_state(1, dtype=x.dtype)
    torch.testing.assert_close(mixer(x, (count + 1000, scan))[0], mixer(x)[0])


@pytest.mark.parametrize(
    "name",
    ["retention", "gla", "mamba2", "mlstm", "rwkv6", "deltanet", "gated_deltanet", "deltaproduct", "rwkv4", "rwkv7"],
)
def test_weight_decay_reaches_the_projections_alone(name):
    mixer = make(name, 8).requires_grad_()
    decayed = {id(p) for p in parameter_groups(mixer, 0.1)[0]["params"]}
    for parameter_name, parameter in mixer.named_parameters():
        projection = parameter_name.endswith(".weight") and parameter.dim() > 1
        assert (id(parameter) in decayed) == projection, parameter_name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("retention", {"head_dim": 5}, "Retention: head_dim is 5, expected a divisor of the width 12"),
        ("gla", {"head_dim": 0}, "GLA: head_dim is 0, expected a divisor of the width 12"),
        ("mamba2", {"head_dim": 7}, "Mamba2: head_dim is 7, expected a divisor of the width 24"),
        ("mamba2", {"head_dim": 8, "groups": 2}, "Mamba2: groups is 2, expected a divisor of the 3 heads"),
        ("mlstm", {"head_dim": 24, "block_size": 5}, "MLSTM: block_size is 5, expected a divisor of the width 24"),
        ("rwkv6", {"head_dim": 9}, "RWKV6: head_dim is 9, expected a divisor of the width 12"),
    ],
)
def test_heads_that_do_not_divide_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        create_mixer(name, 12, **arguments)


@pytest.mark.parametrize(("dim", "heads"), [(1, 1), (5, 1), (64, 1), (96, 2), (130, 5), (512, 8), (67, 67)])
def test_heads_are_as_wide_as_64_allows(dim, heads):
    assert create_mixer("retention", dim).heads == heads


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("shared", [True, False])
def test_head_norm_keeps_heads_apart(kind, shared):
    norm, x = HeadNorm(1 if shared else 3, 4, kind, eps=1e-3).double(), draw(2, 5, 3, 4)
    for parameter in norm.parameters():
        parameter.data = draw(len(parameter))
    weights = norm.weight.view(-1, 4).expand(3, 4)
    for h in range(3):
        own = x[:, :, h]
        expected = rms(own - own.mean(-1, keepdim=True) if kind == "layer" else own, weights[h], 1e-3)
        if kind == "layer":
            expected = expected + norm.bias.view(-1, 4).expand(3, 4)[h]
        torch.testing.assert_close(norm(x)[:, :, h], expected)


def ops_of(name):
    """Return the names of the ops that a mixer's class, or one it is built on, calls."""
    ops = {getattr(kernels, op): op for op in kernels.__all__ if callable(getattr(kernels, op))}
    modules = [sys.modules[cls.__module__] for cls in type(create_mixer(name, 8)).__mro__]
    return {ops[value] for module in modules for value in vars(module).values() if callable(value) and value in ops}


MIXERS_WITH_OPS = [name for name in list_mixers() if ops_of(name)]


def test_mixers_are_found_by_their_ops():
    assert ops_of("retention") == {"gated_linear_attention"}
    assert "mlstm_scan" in ops_of("mlstm")
    assert not {"gru", "lstm"} & set(MIXERS_WITH_OPS)


@pytest.mark.parametrize("name", MIXERS_WITH_OPS)
def test_chunkwise_whole_and_recurrent_forms_agree(name):
    torch.manual_seed(0)
    mixer, x = create_mixer(name, 96).requires_grad_(False), draw(2, 150, 96).float()
    with kernels.use_backend("reference"):
        expected, expected_state = mixer(x)
    with kernels.use_backend("chunked"):
        results = [mixer(x)]
    results.append(mixer(x))
    outputs, state = [], None
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    results.append((torch.stack(outputs, 1), state))
    for y, state in results:
        assert (y - expected).abs().max() < 1e-5 * expected.abs().max()
        for part, expected_part in zip(state, expected_state, strict=True):
            assert (part - expected_part).abs().max() <= 1e-5 * expected_part.abs().max()
