"""TTT-Linear against its paper's formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from scanweave.core.optimizers import parameter_groups
from tests.core.papers import draw, make, stir


def rotated(x, place):
    """Each pair of features as a complex number, turned by place * 10000^(-2 i / D)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angle = place * 10000.0 ** (-2 * torch.arange(pairs.shape[-1], dtype=x.dtype) / x.shape[-1])
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def projections(mixer, x):
    """Queries, keys and values (L, H, D), before rotation."""
    if mixer.backbone == "transformer":
        both = mixer.q_proj(x), mixer.k_proj(x)
    else:
        padded = nn.functional.pad(mixer.q_proj(x).T, (mixer.conv_q.kernel_size[0] - 1, 0))
        both = mixer.conv_q(padded).T, mixer.conv_k(padded).T
    return (part.unflatten(-1, (mixer.heads, -1)) for part in (*both, mixer.v_proj(x)))


def formula(mixer, x):
    """Section 2's inner loop: gradient descent on the loss itself, differentiated by autograd."""
    q, k, v = projections(mixer, x)
    L, H, D = q.shape
    outputs = torch.empty_like(q)
    for h in range(H):
        scale, shift = mixer.ttt_norm_weight[h], mixer.ttt_norm_bias[h]

        def inner(z, W, b, scale=scale, shift=shift):
            return z + nn.functional.layer_norm(z @ W + b, (D,), scale, shift, eps=1e-6)

        W, b = mixer.W1[h], mixer.b1[h, 0]
        for start in range(0, L, mixer.mini_batch):
            W_t, b_t = W, b
            for t in range(start, min(start + mixer.mini_batch, L)):
                key, query = rotated(k[t, h], t - start), rotated(q[t, h], t - start)
                with torch.enable_grad():
                    at = W.clone().requires_grad_(), b.clone().requires_grad_()
                    loss = (inner(key, *at) - v[t, h]).square().sum() / 2
                    dW, db = torch.autograd.grad(loss, at)
                rate = mixer.learnable_ttt_lr_weight[h, 0] @ x[t] + mixer.learnable_ttt_lr_bias[h, 0]
                factor = 1 / mixer.mini_batch
                if mixer.learnable_token_idx is not None:
                    factor = max(0.0, factor + float(mixer.learnable_token_idx[t - start]))
                eta = torch.sigmoid(rate) / D * factor
                W_t, b_t = W_t - eta * dW, b_t - eta * db
                outputs[t, h] = inner(query, W_t, b_t)
            W, b = W_t, b_t
    y = mixer.post_norm(outputs.flatten(1))
    if mixer.backbone == "mamba":
        y = y * nn.functional.gelu(mixer.g_proj(x), approximate="tanh")
    return mixer.o_proj(y)


@pytest.mark.parametrize(("backbone", "learned"), [("transformer", False), ("mamba", False), ("transformer", True)])
def test_ttt_linear_equals_its_formula(backbone, learned):
    options = {"head_dim": 4, "mini_batch": 5, "backbone": backbone, "learned_factor": learned}
    mixer, x = stir(make("ttt_linear", 8, **options)), draw(13, 8)
    expected = formula(mixer, x)
    assert float((mixer(x[None])[0][0] - expected).abs().max() / expected.abs().max()) < 1e-10


def test_the_state_carries_over_a_split_within_a_mini_batch_and_with_convolutions():
    mixer, x = make("ttt_linear", 6, mini_batch=4, backbone="mamba"), draw(2, 11, 6)
    whole, last = mixer(x)
    first, state = mixer(x[:, :6])
    second, last_of_parts = mixer(x[:, 6:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last_of_parts, last)
    assert state[4].tolist() == [2, 2]


def test_ttt_linear_starts_as_its_release():
    mixer = make("ttt_linear", 768)
    assert mixer.heads == 12
    for parameter in (mixer.W1, mixer.learnable_ttt_lr_weight, mixer.q_proj.weight, mixer.o_proj.weight):
        assert abs(float(parameter.std()) - 0.02) < 0.001
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters() if "proj" not in name} == {
        "learnable_ttt_lr_weight": (12, 1, 768),
        "learnable_ttt_lr_bias": (12, 1),
        "ttt_norm_weight": (12, 64),
        "ttt_norm_bias": (12, 64),
        "W1": (12, 64, 64),
        "b1": (12, 1, 64),
        "post_norm.weight": (768,),
        "post_norm.bias": (768,),
    }
    decayed = {id(p) for p in parameter_groups(mixer.requires_grad_(), 0.1)[0]["params"]}
    names = {name for name, p in mixer.named_parameters() if id(p) in decayed}
    assert names == {f"{x}_proj.weight" for x in "qkvo"} | {"W1", "learnable_ttt_lr_weight"}
    for parameter in (mixer.learnable_ttt_lr_bias, mixer.ttt_norm_bias, mixer.b1):
        assert not parameter.any()
    assert (mixer.ttt_norm_weight == 1).all()


def test_wrong_arguments_of_ttt_linear_are_named():
    with pytest.raises(ConfigError, match="mini_batch is 0, expected at least 1"):
        create_mixer("ttt_linear", 8, mini_batch=0)
    with pytest.raises(ConfigError, match="backbone is 'rnn', expected 'transformer' or 'mamba'"):
        create_mixer("ttt_linear", 8, backbone="rnn")
