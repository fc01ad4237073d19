"""Orders are exact bijections; mixing in two directions sees both sides, and packed sequences stay apart."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import Bidirectional, ConfigError, Forward, Order, Reversed, create_mixer
from scanweave.core.orders import reverse_reset


class EveryThird(Order):
    """Positions 0, 3, 6, ..., 1, 4, ..., 2, 5, ...: an order whose inverse is not itself."""

    def index(self, shape):
        positions = torch.arange(torch.Size(shape).numel())
        return torch.cat([positions[start::3] for start in range(3)])


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("order", [Forward(), Reversed(), EveryThird()], ids=lambda order: type(order).__name__)
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 5), (2, 3, 4)])
def test_restore_undoes_permute(order, shape):
    x = draw(2, *shape, 3)
    sequence = order.permute(x)
    size = torch.Size(shape).numel()
    assert sequence.shape == (2, size, 3)
    assert torch.equal(order.restore(sequence, shape), x)
    assert torch.equal(sequence, x.flatten(1, -2)[:, order.index(shape)])
    assert sorted(order.index(shape).tolist()) == list(range(size))


def test_forward_and_reversed_are_what_their_names_say():
    x = draw(2, 5, 3)
    assert torch.equal(Forward().permute(x), x)
    assert torch.equal(Reversed().permute(x), x.flip(1))
    grid = draw(1, 2, 3, 1)
    assert torch.equal(Forward().permute(grid), grid.reshape(1, 6, 1))


def test_restore_names_a_wrong_length():
    with pytest.raises(ValueError, match=r"Reversed: y has length 6 on axis 1, expected 20: \(4, 5\)"):
        Reversed().restore(draw(1, 6, 2), (4, 5))


def build(merge, shared=False):
    torch.manual_seed(0)
    mixers = [create_mixer("mingru", 6).double() for _ in range(2)]
    return Bidirectional(mixers[0], None if shared else mixers[1], merge=merge).double()


@pytest.mark.parametrize("merge", ["sum", "mean", "concat"])
@pytest.mark.parametrize("shared", [False, True])
def test_bidirectional_joins_both_directions(merge, shared):
    mixer, x = build(merge, shared), draw(2, 9, 6)
    there, back = mixer.forward_mixer(x)[0], mixer.backward_mixer(x.flip(1))[0].flip(1)
    expected = {
        "sum": lambda: there + back,
        "mean": lambda: (there + back) / 2,
        "concat": lambda: mixer.join(torch.cat([there, back], -1)),
    }[merge]()
    y, state = mixer(x)
    torch.testing.assert_close(y, expected)
    assert state == mixer.initial_state(2) == ()
    own = sum(p.numel() for p in mixer.forward_mixer.parameters())
    joins = 0 if mixer.join is None else sum(p.numel() for p in mixer.join.parameters())
    assert sum(p.numel() for p in mixer.parameters()) == own * (1 if shared else 2) + joins


def test_packed_sequences_stay_apart_in_both_directions():
    mixer, x = build("sum"), draw(2, 10, 6)
    reset = torch.zeros(2, 10, dtype=torch.bool)
    reset[0, [0, 4, 5]] = True
    reset[1, 9] = True
    parts = [(0, 0, 4), (0, 4, 5), (0, 5, 10), (1, 0, 9), (1, 9, 10)]
    y, _ = mixer(x, None, reset)
    for row, start, stop in parts:
        alone, _ = mixer(x[row : row + 1, start:stop])
        torch.testing.assert_close(y[row : row + 1, start:stop], alone)


def test_reverse_reset_marks_each_last_step():
    reset = torch.tensor([[True, False, False, True, False]])
    assert reverse_reset(reset).tolist() == [[True, False, True, False, False]]


def test_bidirectional_refuses_what_it_cannot_do():
    mixer, x = build("sum"), draw(2, 4, 6)
    with pytest.raises(ValueError, match="state has 1 tensors, expected \\(\\)"):
        mixer(x, mixer.forward_mixer.initial_state(2))
    with pytest.raises(ConfigError, match="there is no step"):
        mixer.step(x[:, 0])
    with pytest.raises(ConfigError, match="backward_mixer has dim 5, forward_mixer has 6"):
        Bidirectional(create_mixer("gru", 6), create_mixer("gru", 5))
    with pytest.raises(ConfigError, match="merge is 'max'"):
        Bidirectional(create_mixer("gru", 6), merge="max")
