"""The mixers whose state is corrected as it is written, each against its paper's formulas."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from tests.core.papers import convolved, draw, make
from tests.installed import import_peer

silu, softplus, sigmoid = nn.functional.silu, nn.functional.softplus, torch.sigmoid

DELTA_MIXERS = [
    ("deltanet", {"head_dim": 4}),
    ("deltanet", {"head_dim": 4, "eigenvalues": "signed"}),
    ("gated_deltanet", {"head_dim": 3}),
    ("gated_deltanet", {"head_dim": 2, "expand_k": 0.5, "expand_v": 1.5, "eigenvalues": "signed"}),
    ("deltaproduct", {"head_dim": 4}),
    ("deltaproduct", {"head_dim": 4, "householders": 3, "gated": True, "expand_v": 0.5, "eigenvalues": "positive"}),
]


def delta_formula(mixer, x):
    """The papers' recurrence, its state V x K, head by head: ``S <- S (I - beta k k^T) + beta v k^T``, ``o = S q``."""
    H, n, K, V = mixer.heads, mixer.householders, mixer.head_dim, mixer.value_dim
    q = convolved(mixer.q_proj(x), mixer.q_conv1d).reshape(len(x), H, K)
    k = convolved(mixer.k_proj(x), mixer.k_conv1d).reshape(len(x), n, H, K)
    v = convolved(mixer.v_proj(x), mixer.v_conv1d).reshape(len(x), n, H, V)
    beta = sigmoid(mixer.b_proj(x)).reshape(len(x), n, H) * (2 if mixer.eigenvalues == "signed" else 1)
    outputs = []
    for h in range(H):
        S = x.new_zeros(V, K)
        for t in range(len(x)):
            if mixer.gated:
                step = softplus(mixer.a_proj.weight[h] @ x[t] + mixer.dt_bias[h])
                S = S * torch.exp(-torch.exp(mixer.A_log[h]) * step)
            for i in range(n):
                key = k[t, i, h] / (k[t, i, h].square().sum() + 1e-6).sqrt()
                S = S @ (torch.eye(K, dtype=x.dtype) - beta[t, i, h] * torch.outer(key, key))
                S = S + beta[t, i, h] * torch.outer(v[t, i, h], key)
            o = S @ (q[t, h] / (q[t, h].square().sum() + 1e-6).sqrt()) / math.sqrt(K)
            o = o / (o.square().mean() + 1e-5).sqrt() * mixer.o_norm.weight
            outputs.append(o * silu(mixer.g_proj.weight.reshape(H, V, -1)[h] @ x[t]) if mixer.gated else o)
    return mixer.o_proj(torch.stack(outputs).reshape(H, len(x), V).transpose(0, 1).reshape(len(x), H * V))


@pytest.mark.parametrize(("name", "arguments"), DELTA_MIXERS)
def test_delta_mixers_equal_their_formulas(name, arguments):
    mixer, x = make(name, 8, **arguments), draw(11, 8)
    mixer.o_norm.weight.copy_(1 + 0.1 * draw(mixer.value_dim))
    torch.testing.assert_close(mixer(x[None])[0][0], delta_formula(mixer, x))


def test_delta_mixers_carry_the_published_layers_names_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in make("gated_deltanet", 256).state_dict().items()}
    assert shapes == {
        "q_proj.weight": (192, 256),
        "k_proj.weight": (192, 256),
        "v_proj.weight": (384, 256),
        "q_conv1d.weight": (192, 1, 4),
        "k_conv1d.weight": (192, 1, 4),
        "v_conv1d.weight": (384, 1, 4),
        "b_proj.weight": (3, 256),
        "a_proj.weight": (3, 256),
        "A_log": (3,),
        "dt_bias": (3,),
        "g_proj.weight": (384, 256),
        "o_norm.weight": (128,),
        "o_proj.weight": (256, 384),
    }
    shapes = {key: tuple(value.shape) for key, value in make("deltaproduct", 64, householders=3).state_dict().items()}
    assert shapes == {
        "q_proj.weight": (64, 64),
        "k_proj.weight": (192, 64),
        "v_proj.weight": (192, 64),
        "q_conv1d.weight": (64, 1, 4),
        "k_conv1d.weight": (192, 1, 4),
        "v_conv1d.weight": (192, 1, 4),
        "b_proj.weight": (3, 64),
        "o_norm.weight": (64,),
        "o_proj.weight": (64, 64),
    }


def test_gated_deltanet_starts_as_its_paper_says():
    mixer = make("gated_deltanet", 4, expand_k=500, head_dim=1)
    step = softplus(mixer.dt_bias)
    assert 0.999e-3 < step.min() < 1.1e-3
    assert 0.9e-1 < step.max() < 1.001e-1
    # Log-uniform: the median is the geometric mean of the ends.
    assert 0.8 < step.median() / 1e-2 < 1.25
    A = mixer.A_log.exp()
    assert A.min() > 0
    assert 15.5 < A.max() <= 16.001
    assert abs(float(A.mean()) - 8) < 0.5


def transition(mixer, x):
    """What one step multiplies the state by, with nothing written: the state's change from the identity."""
    mixer.v_proj.weight.zero_()
    conv, scan = mixer.initial_state(len(x), dtype=x.dtype)
    return mixer(x[:, None], (conv, scan + torch.eye(scan.shape[-1], dtype=x.dtype)))[1][1]


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "deltaproduct"])
def test_eigenvalues_of_a_step(name):
    arguments = {"deltaproduct": {"householders": 1}, "gated_deltanet": {"expand_k": 1.0, "expand_v": 1.0}}.get(
        name, {}
    )
    for kind, low in (("positive", 0.0), ("signed", -1.0)):
        mixer = make(name, 6, head_dim=3, eigenvalues=kind, **arguments)
        values = torch.linalg.eigvalsh(transition(mixer, 30 * draw(200, 6)))
        assert values.max() <= 1 + 1e-9
        assert low - 1e-9 <= values.min() < low + 0.01


def counter(name, **arguments):
    """A mixer of one head of 2 that reads (1, 0) as start, (1, 1) as count and (1, -1) as hold, all set by hand.

    beta is half its range at the start, all of it at a count and 0 at a hold; values are there at the start alone.
    """
    mixer = make(name, 2, **arguments)
    for conv in (mixer.q_conv1d, mixer.k_conv1d, mixer.v_conv1d):
        conv.weight.zero_()
        conv.weight[..., -1] = 1
    for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.b_proj):
        layer.weight.zero_()
    mixer.b_proj.weight[:, 1] = 1e3
    mixer.o_proj.weight.copy_(torch.eye(2))
    # silu(1e6) is 1e6, and 1e-6 is nothing beside its square.
    mixer.q_proj.weight[0, 0] = 1e6
    counts = torch.randint(2, (300,), generator=torch.Generator().manual_seed(0))
    x = torch.stack([torch.ones(301), torch.cat([torch.zeros(1), 2.0 * counts - 1])], -1).double()
    return mixer, x[None], counts.cumsum(0)


@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_signed_deltanet_counts_parity_and_positive_cannot(kind):
    mixer, x, count = counter("deltanet", eigenvalues=kind)
    mixer.k_proj.weight[0, 0] = 1e6
    mixer.v_proj.weight[0] = torch.tensor([1e6, -1e6])
    y = mixer(x)[0][0, :, 0]
    got = y[1:] / y[0]
    # Positive: the first count erases the state, for beta can be 1 and no more.
    expected = 1 - 2 * (count % 2) if kind == "signed" else count == 0
    torch.testing.assert_close(got, expected.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["deltanet", "deltaproduct"])
def test_rounded_keys_neither_grow_nor_shrink_the_state(name):
    mixer = make(name, 8, head_dim=4, eigenvalues="signed", d_conv=1).bfloat16()
    # beta is 2 at every step, the keys are the same, long before their norm, and nothing is written.
    mixer.b_proj.weight.fill_(100)
    mixer.v_proj.weight.zero_()
    mixer.k_proj.weight.abs_()
    mixer.k_conv1d.weight.abs_()
    x = torch.full((1, 3000, 8), 70, dtype=torch.bfloat16)
    conv, scan = mixer.initial_state(1)
    after = mixer(x, (conv, scan + torch.eye(4)))[1][1]
    torch.testing.assert_close(after.norm(dim=(2, 3)), torch.full((1, 2), 2.0), rtol=1e-2, atol=0)


def test_two_householder_steps_count_modulo_three():
    mixer, x, count = counter("deltaproduct")
    # Two reflections whose normals are 60 degrees apart turn the state by 120 degrees.
    mixer.k_proj.weight[:, 0] = 1e6 * torch.tensor([1, 0, 0.5, 0.75**0.5], dtype=torch.float64)
    mixer.v_proj.weight[0] = mixer.v_proj.weight[3] = torch.tensor([1e6, -1e6])
    y = mixer(x)[0][0, 1:]
    table = torch.stack([y[count % 3 == i][0] for i in range(3)])
    torch.testing.assert_close(y, table[count % 3], rtol=0, atol=1e-6)
    assert torch.pdist(table).min() > 0.1


def test_wrong_arguments_of_delta_mixers_are_named():
    with pytest.raises(ConfigError, match=r"eigenvalues is 'negative', expected 'positive' or 'signed'"):
        create_mixer("deltanet", 8, eigenvalues="negative")
    with pytest.raises(ConfigError, match=r"expand_v is 0\.25 and head_dim 3: .* 0\.75, expected a whole number"):
        create_mixer("gated_deltanet", 8, head_dim=3, expand_v=0.25)
    with pytest.raises(ConfigError, match=r"DeltaProduct: householders is 0, expected at least 1"):
        create_mixer("deltaproduct", 8, householders=0)
    for name in ("deltanet", "deltaproduct"):
        with pytest.raises(ConfigError, match="head_dim is 3, expected a divisor of the width 8"):
            create_mixer(name, 8, head_dim=3)


def test_gated_deltanet_equals_olmo_hybrids_layer_with_the_same_weights(monkeypatch):
    peers = import_peer("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    # Where flash-linear-attention is installed the peer calls its GPU kernel, on a CPU as well.
    monkeypatch.setattr(peers, "torch_chunk_gated_delta_rule", inspect.unwrap(peers.torch_chunk_gated_delta_rule))
    mixer = make("gated_deltanet", 32, head_dim=12, eigenvalues="signed").float()
    config = peers.OlmoHybridConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=12,
        linear_value_head_dim=24,
    )
    peer = peers.OlmoHybridGatedDeltaNet(config, layer_idx=0)
    weights = mixer.state_dict()
    # The peer joins the three convolutions into one.
    weights["conv1d.weight"] = torch.cat([weights.pop(f"{name}_conv1d.weight") for name in "qkv"])
    peer.load_state_dict(weights)
    x = draw(2, 70, 32).float()
    torch.testing.assert_close(mixer(x)[0], peer(x), rtol=1e-4, atol=1e-5)
