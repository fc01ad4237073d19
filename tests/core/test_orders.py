"""Orders are exact bijections; mixing in two directions sees both sides, and packed sequences stay apart."""

from __future__ import annotations

import pytest
import torch

from scanweave.core import Bidirectional, ConfigError, Forward, Order, Reversed, create_mixer, create_order
from scanweave.core.orders import reverse_reset


class EveryThird(Order):
    """Positions 0, 3, 6, ..., 1, 4, ..., 2, 5, ...: an order whose inverse is not itself."""

    def index(self, shape):
        positions = torch.arange(torch.Size(shape).numel())
        return torch.cat([positions[start::3] for start in range(3)])


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


NAMES = ["raster", "columns", "snake", "hilbert", "morton", "temporal-first", "windows-1", "windows-3"]
ORDERS = {"every third": EveryThird()} | {
    name + end: create_order(name + end) for name in NAMES for end in ("", "-reversed")
}
SHAPES = [(1,), (7,), (4, 5), (1, 6), (6, 1), (7, 13), (16, 16), (2, 3, 4), (3, 1, 5), (2, 4, 2, 3)]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_restore_undoes_permute(order, shape):
    x = draw(2, *shape, 3)
    sequence = order.permute(x)
    size = torch.Size(shape).numel()
    assert sequence.shape == (2, size, 3)
    assert torch.equal(order.restore(sequence, shape), x)
    assert torch.equal(sequence, x.flatten(1, -2)[:, order.index(shape)])
    assert sorted(order.index(shape).tolist()) == list(range(size))


def test_every_small_grid_is_visited_once():
    for height in range(1, 12):
        for width in range(1, 12):
            for name in NAMES:
                index = create_order(name).index((height, width))
                assert index.sort().values.tolist() == list(range(height * width)), (name, height, width)


def steps_of(order, shape):
    """Return how far each step goes along either axis, (L - 1, 2)."""
    index = order.index(shape)
    places = torch.stack([index // shape[1], index % shape[1]], 1)
    return places.diff(dim=0).abs()


@pytest.mark.parametrize("shape", [(8, 8), (16, 32), (6, 10), (4, 7), (7, 5), (9, 9), (15, 12)], ids=str)
def test_hilbert_and_snake_go_to_neighbours(shape):
    assert (steps_of(create_order("snake"), shape).sum(1) == 1).all()
    hilbert = steps_of(create_order("hilbert"), shape)
    assert hilbert.max() == 1
    assert (hilbert.sum(1) == 2).sum() <= max(length % 2 for length in shape)


def test_hilbert_keeps_near_what_is_near():
    """A run of 64 steps stays in a box of 16 x 16 of a grid of 64 x 64, where rows would cross the whole width."""
    index = create_order("hilbert").index((64, 64))
    places = torch.stack([index // 64, index % 64], 1).unfold(0, 64, 1)
    extent = places.amax(-1) - places.amin(-1) + 1
    assert extent.max() <= 16


def test_orders_are_what_their_names_say():
    def seen(name, shape):
        return create_order(name).index(shape).tolist()

    assert seen("columns", (2, 3)) == [0, 3, 1, 4, 2, 5]
    assert seen("columns-reversed", (2, 3)) == [5, 2, 4, 1, 3, 0]
    assert seen("snake", (2, 2, 2)) == [0, 1, 3, 2, 6, 7, 5, 4]
    assert seen("morton", (4, 4))[:8] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert seen("windows-2", (3, 3)) == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert seen("temporal-first", (2, 1, 3)) == [0, 3, 1, 4, 2, 5]
    assert seen("raster", (2, 1, 3)) == [0, 1, 2, 3, 4, 5]


def test_an_unknown_order_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no order 'hilbret' \(did you mean 'hilbert'\?\); there are raster"):
        create_order("hilbret-reversed")
    with pytest.raises(ConfigError, match="size is 0"):
        create_order("windows-0")


def test_an_index_first_seen_in_inference_serves_training():
    order, x = create_order("snake"), torch.randn(1, 3, 17, 2, requires_grad=True)
    with torch.inference_mode():
        order.permute(x)
    order.restore(order.permute(x), (3, 17)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


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
