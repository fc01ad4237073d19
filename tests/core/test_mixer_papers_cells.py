"""The mixers made of recurrent cells: against their authors' layer, and against formulas step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from scanweave.core.optimizers import parameter_groups
from tests.core.papers import draw, make, stir
from tests.installed import import_peer

sigmoid, tanh = torch.sigmoid, torch.tanh


def authors_layer(dim, heads):
    module = import_peer("xlstm.blocks.slstm.layer")
    torch.manual_seed(1)
    return module.sLSTMLayer(module.sLSTMLayerConfig(embedding_dim=dim, num_heads=heads, backend="vanilla")).double()


def test_slstm_equals_its_authors_layer_with_the_same_weights():
    mixer, peer, x = stir(make("slstm", 12, head_dim=4)), authors_layer(12, 3), draw(2, 33, 12)
    peer.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x)[0], peer(x))
    wanted, states = peer(x[:, :20], return_last_state=True)
    y, (_, *cell) = mixer(x[:, :20])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(torch.stack([part.flatten(1) for part in cell]), states["slstm_state"])


def test_slstm_starts_as_its_authors_layer():
    mixer, peer = create_mixer("slstm", 512, head_dim=128), authors_layer(512, 4)
    peer.reset_parameters()
    ours, theirs = mixer.state_dict(), {name: p.float() for name, p in peer.state_dict().items()}
    assert list(ours) == list(theirs)
    for name in ("slstm_cell._recurrent_kernel_", "slstm_cell._bias_", "group_norm.weight"):
        torch.testing.assert_close(ours[name], theirs[name])
    for name in ("igate.weight", "fgate.weight", "zgate.weight", "ogate.weight"):
        assert abs(float(ours[name].std() / theirs[name].std()) - 1) < 0.02, name


def elman_step(mixer, wx, product, h):
    (a,) = (wx + product).unbind(1)
    return (tanh(a),)


def lstm_step(mixer, wx, product, h, c):
    i, f, g, o = (wx + product).unbind(1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru_step(mixer, wx, product, h):
    r, z = (sigmoid(wx[:, k] + product[:, k]) for k in range(2))
    return ((1 - z) * tanh(wx[:, 2] + r * product[:, 2]) + z * h,)


@pytest.mark.parametrize(
    ("name", "step", "states"), [("elman", elman_step, 1), ("flash_lstm", lstm_step, 2), ("flash_gru", gru_step, 1)]
)
def test_cells_in_heads_equal_their_formulas(name, step, states):
    mixer, x = stir(make(name, 6, head_dim=3)), draw(17, 6)
    R, b = mixer.recurrent_weight, mixer.recurrent_bias
    state, outputs = (torch.zeros(2, 3, dtype=x.dtype),) * states, []
    for x_t in x:
        product = torch.einsum("hgoi,hi->hgo", R, state[0]) + b
        state = step(mixer, mixer.in_proj(x_t).view(product.shape), product, *state)
        outputs.append(nn.functional.layer_norm(state[0], (3,)).flatten() * (1 + mixer.norm.weight))
    torch.testing.assert_close(mixer(x[None])[0][0], mixer.out_proj(torch.stack(outputs)))


@pytest.mark.parametrize(("name", "gate"), [("flash_lstm", 1), ("flash_gru", 1), ("elman", None)])
def test_cells_in_heads_start_by_remembering(name, gate):
    mixer = create_mixer(name, 128)
    heads, gates, size, _ = mixer.recurrent_weight.shape
    assert (heads, size) == (2, 64)
    eye = torch.eye(size).expand(heads, gates, size, size)
    torch.testing.assert_close(mixer.recurrent_weight @ mixer.recurrent_weight.mT, eye, atol=1e-5, rtol=0)
    wanted = torch.zeros(heads, gates, size)
    if gate is not None:
        wanted[:, gate] = 1
    assert torch.equal(mixer.recurrent_bias, wanted)
    decayed = {id(p) for p in parameter_groups(mixer, 0.1)[0]["params"]}
    names = {name for name, p in mixer.named_parameters() if id(p) in decayed}
    assert names == {"in_proj.weight", "recurrent_weight", "out_proj.weight"}


@pytest.mark.parametrize("name", ["slstm", "elman"])
def test_a_head_that_does_not_divide_is_named(name):
    with pytest.raises(ConfigError, match="head_dim is 3, expected a divisor of the width 8"):
        create_mixer(name, 8, head_dim=3)
