"""Blocks and stacks: the residual form, the state threaded through, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from scanweave.core import Bidirectional, Block, ConfigError, Stack, create_mixer

DIM = 8


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("norm", "norm_type"), [("rmsnorm", nn.RMSNorm), ("layernorm", nn.LayerNorm)])
@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_a_block_is_pre_norm_and_residual(norm, norm_type, mlp):
    block, x = Block(DIM, "mingru", mlp_ratio=1.5, mlp=mlp, norm=norm).double(), draw(2, 5, DIM)
    assert isinstance(block.norm1, norm_type)
    hidden = x + block.mixer(block.norm1(x))[0]
    torch.testing.assert_close(block(x)[0], hidden + block.mlp(block.norm2(hidden)))
    assert {layer.out_features for layer in block.mlp.modules() if isinstance(layer, nn.Linear)} == {12, DIM}


def test_without_a_ratio_there_is_no_feedforward():
    block, x = Block(DIM, create_mixer("gru", DIM), mlp_ratio=0).double(), draw(2, 5, DIM)
    assert [name for name, _ in block.named_children() if name in ("mlp", "norm2")] == []
    torch.testing.assert_close(block(x)[0], x + block.mixer(block.norm1(x))[0])


def test_drop_path_skips_whole_samples_in_training_alone():
    torch.manual_seed(0)
    block, x = Block(DIM, "mingru", mlp_ratio=0, drop_path=0.5).double(), draw(64, 3, DIM)
    untouched = (block(x)[0] == x).flatten(1).all(1).sum()
    assert 16 <= untouched <= 48
    assert not (block.eval()(x)[0] == x).flatten(1).all(1).any()


def make_stack(**kwargs):
    torch.manual_seed(0)
    return Stack(DIM, 3, **kwargs).double()


@pytest.mark.parametrize("mixer", ["mamba", partial(create_mixer, "s5", d_state=4)], ids=["by-name", "by-factory"])
def test_a_stack_threads_its_states(mixer):
    stack, x = make_stack(mixer=mixer), draw(2, 14, DIM)
    whole, last = stack(x)
    first, state = stack(x[:, :5])
    second, last_of_parts = stack(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    state = stack.initial_state(2, dtype=torch.float64)
    steps = []
    for x_t in x.unbind(1):
        y_t, state = stack.step(x_t, state)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    for a, b, c in zip(last, last_of_parts, state, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    torch.testing.assert_close(stack.step(x[:, 0])[0], whole[:, 0])
    reset = torch.zeros(2, 14, dtype=torch.bool)
    reset[:, 6] = True
    torch.testing.assert_close(stack(x, None, reset)[0][:, 6:], stack(x[:, 6:])[0])


def test_a_bidirectional_stack_sees_both_sides():
    stack, x = make_stack(mixer="mingru", bidirectional=True), draw(1, 9, DIM)
    changed = x.clone()
    changed[:, 8] += 1
    y, states = stack(x)
    assert (stack(changed)[0][:, 0] - y[:, 0]).abs().max() > 1e-8
    assert states == ((), (), ())
    assert all(isinstance(block.mixer, Bidirectional) for block in stack.blocks)
    assert stack.blocks[0].mixer.forward_mixer is not stack.blocks[0].mixer.backward_mixer
    with pytest.raises(ConfigError, match="there is no step"):
        stack.step(x[:, 0])


def test_drop_path_grows_with_depth():
    stack = make_stack(mixer="mingru", drop_path=0.2)
    assert isinstance(stack.blocks[0].drop_path, nn.Identity)
    assert [round(block.drop_path.drop_prob, 3) for block in list(stack.blocks)[1:]] == [0.1, 0.2]


def test_a_stack_compiles_to_one_graph():
    stack, x = make_stack(mixer="mamba"), draw(2, 6, DIM)
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], stack(x)[0])


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="the mixer has dim 4, the block has 8"):
        Block(8, create_mixer("gru", 4))
    with pytest.raises(ConfigError, match="norm is 'batchnorm', expected one of rmsnorm, layernorm"):
        Block(8, "gru", norm="batchnorm")
    with pytest.raises(ConfigError, match="mlp is 'relu', expected one of mlp, swiglu"):
        Block(8, "gru", mlp="relu")
    with pytest.raises(ConfigError, match=r"no mixer 'grru' \(did you mean 'gru'\?\)"):
        Stack(8, 1, "grru")
    with pytest.raises(ConfigError, match="depth is 0"):
        Stack(8, 0)
    with pytest.raises(ValueError, match="state has 1 entries, expected 3"):
        make_stack(mixer="gru")(draw(1, 2, 8), ((),))
