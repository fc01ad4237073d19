"""pLSTM on grids: every corner sends, paths neither vanish nor explode, and no direction is run twice."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import ConfigError, create_grid_mixer
from scanweave.core.mixers.plstm2d import DIRECTIONS
from scanweave.kernels import plstm_scan_2d

MODES = ["P", "D"]
each = pytest.mark.parametrize("mode", MODES)


def make(mode, dim=8, **kwargs):
    torch.manual_seed(0)
    return create_grid_mixer("plstm2d", dim, mode=mode, **kwargs).double()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@each
@pytest.mark.parametrize("keep", range(4))
def test_each_direction_reaches_its_own_quadrant(mode, keep):
    mixer, x = make(mode), draw(1, 5, 7, 8).requires_grad_()
    directions = DIRECTIONS[keep]
    mixer.direct.bias.data.fill_(-1e4)
    for gates in (mixer.gates[other] for other in range(4) if other != keep):
        for name, bias in zip(gates.names, gates.bias.data.chunk(len(gates.names)), strict=True):
            if name.startswith("mark"):
                bias.fill_(-1e4)
    (seen,) = torch.autograd.grad(mixer(x)[0, 2, 3] @ draw(8), x)
    seen = seen[0].abs().sum(-1) > 0
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    along = columns <= 3 if directions[0] == "right" else columns >= 3
    across = rows <= 2 if directions[1] == "down" else rows >= 2
    assert torch.equal(seen, along & across)


@each
def test_a_quarter_of_the_heads_from_each_corner(mode):
    """With ``join="heads"`` a head's output is what it would be if the other corners sent nothing."""
    mixer, x = make(mode, dim=16, head_dim=4, join="heads"), draw(1, 3, 4, 16).requires_grad_()
    mixer.norm, mixer.o_proj = torch.nn.Identity(), torch.nn.Identity()
    for head, (sideways, vertical) in enumerate(DIRECTIONS):
        (seen,) = torch.autograd.grad(mixer(x)[0, 1, 2, 4 * head : 4 * head + 4] @ draw(4), x)
        seen = seen[0].abs().sum(-1) > 0
        rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
        along = columns <= 2 if sideways == "right" else columns >= 2
        across = rows <= 1 if vertical == "down" else rows >= 1
        assert torch.equal(seen, along & across)
    with pytest.raises(ConfigError, match="with 2 heads, expected a multiple of four"):
        make(mode, head_dim=4, join="heads")
    with pytest.raises(ConfigError, match="join is 'mean'"):
        make(mode, join="mean")


@each
@pytest.mark.parametrize("axis", [1, 2])
def test_a_flipped_image_with_flipped_weights_gives_the_flipped_output(mode, axis):
    mixer, x = make(mode), draw(2, 4, 5, 8)
    expected = mixer(x).flip(axis)
    turned = [tuple(names) for names in DIRECTIONS]
    swap = {"down": "up", "up": "down"} if axis == 1 else {"right": "left", "left": "right"}
    order = [turned.index(tuple(swap.get(name, name) for name in names)) for names in turned]
    mixer.gates = torch.nn.ModuleList(mixer.gates[i] for i in order)
    torch.testing.assert_close(mixer(x.flip(axis)), expected)


@each
@pytest.mark.parametrize("bias", [-30.0, 0.0, 30.0])
def test_what_a_node_sends_is_bounded_over_all_paths(mode, bias):
    """A source of 1 at a corner: what stands on the edges never exceeds it, at any distance and for any gates."""
    mixer = make(mode)
    for gates in mixer.gates:
        torch.nn.init.constant_(gates.bias, bias)
    grid, x = (1, 40, 40, 1), draw(1, 40, 40, 8)
    with torch.no_grad():
        source, transition = mixer._flow(mixer.gates[0](10 * x))
        source = source * torch.eye(1600, dtype=torch.float64)[0].view(*grid, 1)
        one = torch.ones(*grid, 1, dtype=torch.float64)
        marks, direct = torch.ones_like(source), torch.zeros_like(one[..., 0])
        seen, _ = plstm_scan_2d(one, one, one, source, transition, marks, direct)
    # Two edges come into a node.
    assert seen.max() <= 2 + 1e-9
    assert seen.min() >= 0


@each
def test_half_precision_is_close_and_a_strip_is_served(mode):
    mixer, x = make(mode).float(), draw(1, 1, 9, 8).float()
    y = mixer(x)
    assert (mixer.bfloat16()(x.bfloat16()).float() - y).norm() / y.norm() < 0.03
    assert mixer(x.bfloat16().transpose(1, 2)).shape == (1, 9, 1, 8)


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="mode is 'X', expected 'P' or 'D'"):
        make("X")
    with pytest.raises(ConfigError, match="head_dim is 3"):
        make("P", head_dim=3)
    with pytest.raises(ValueError, match=r"expected \(batch, height, width, 8\)"):
        make("P")(draw(1, 2, 2, 2, 8))
