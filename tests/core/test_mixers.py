"""The contract of a mixer, held by every registered name with its defaults: a new mixer is tested by being there."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from scanweave.core import create_mixer, list_mixers

DIM = 8

pytestmark = pytest.mark.parametrize("name", list_mixers())


def make(name, dim=DIM, dtype=torch.float64):
    torch.manual_seed(0)
    return create_mixer(name, dim).to(dtype)


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def error(got, expected):
    """Largest difference, as a share of the largest expected value."""
    return float((got.detach() - expected.detach()).abs().max() / expected.detach().abs().max().clamp(min=1e-12))


def assert_states_close(got, expected, tolerance):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert error(a, b) < tolerance


def fold(mixer, x, state):
    outputs = []
    for x_t in x.unbind(1):
        y, state = mixer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_forward_is_the_fold_of_step(name, dtype, tolerance):
    mixer, x = make(name, dtype=dtype), draw(3, 37, DIM, dtype=dtype)
    y, state = mixer(x)
    y_steps, state_steps = fold(mixer, x, mixer.initial_state(3, dtype=dtype))
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert error(y_steps, y) < tolerance
    assert_states_close(state_steps, state, tolerance)
    assert error(mixer.step(x[:, 0])[0], y[:, 0]) < tolerance


def test_two_parts_with_carried_state_equal_the_whole_and_so_do_their_gradients(name):
    mixer, x, weight = make(name), draw(2, 23, DIM).requires_grad_(), draw(2, 23, DIM)
    inputs = [x, *mixer.parameters()]
    whole, last = mixer(x)
    first, state = mixer(x[:, :10])
    second, last_of_parts = mixer(x[:, 10:], state)
    assert error(torch.cat([first, second], 1), whole) < 1e-10
    assert_states_close(last_of_parts, last, 1e-10)
    expected = torch.autograd.grad((whole * weight).sum() + sum(s.sum() for s in last), inputs)
    got = torch.autograd.grad(
        (torch.cat([first, second], 1) * weight).sum() + sum(s.sum() for s in last_of_parts), inputs
    )
    for a, b in zip(got, expected, strict=True):
        assert error(a, b) < 1e-9
    through_state = torch.autograd.grad(mixer(x[:, 10:], mixer(x[:, :10])[1])[0].sum(), x)[0]
    assert through_state[:, :10].abs().sum() > 0


def test_a_reset_starts_a_sequence_of_its_own(name):
    mixer, x = make(name), draw(3, 20, DIM).requires_grad_()
    starts = [[0, 1, 2, 13], [7], [19]]
    reset = torch.zeros(3, 20, dtype=torch.bool)
    for row, places in enumerate(starts):
        reset[row, places] = True
    before = mixer(draw(3, 5, DIM))[1]
    before = tuple(part.detach() for part in before)
    y, last = mixer(x, before, reset)
    rows, lasts = [], []
    for row, places in enumerate(starts):
        state = tuple(part[row : row + 1] for part in before)
        bounds = [0, *(p for p in places if p), 20]
        pieces = []
        for start, stop in pairwise(bounds):
            piece, state = mixer(x[row : row + 1, start:stop], None if start in places else state)
            pieces.append(piece)
        rows.append(torch.cat(pieces, 1))
        lasts.append(state)
    separate = torch.cat(rows)
    assert error(y, separate) < 1e-10
    assert_states_close(last, [torch.cat(parts) for parts in zip(*lasts, strict=True)], 1e-10)
    weight = draw(3, 20, DIM)
    expected, got = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (separate, y))
    assert error(got, expected) < 1e-9


def test_causal(name):
    mixer, x = make(name), draw(2, 30, DIM)
    changed = x.clone()
    changed[:, 17] += 1
    y, y_changed = mixer(x)[0], mixer(changed)[0]
    assert error(y_changed[:, :17], y[:, :17]) < 1e-12
    assert error(y_changed[:, 17], y[:, 17]) > 1e-4
    assert error(y_changed[:, 18:], y[:, 18:]) > 1e-6, "the output after the change does not remember it"


def test_bfloat16_is_close_to_float32(name):
    half = make(name, dtype=torch.bfloat16)
    single = copy.deepcopy(half).float()
    x = draw(4, 64, DIM, dtype=torch.bfloat16)
    y, state = half(x)
    expected, _ = single(x.float())
    assert y.dtype == torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    assert (y.float() - expected).norm() / expected.norm() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        cast, state = single(x.float())
        cast_half, _ = single(x)
    assert {part.dtype for part in state} == {torch.float32}
    assert (cast.float() - expected).norm() / expected.norm() < 0.02
    assert (cast_half.float() - expected).norm() / expected.norm() < 0.02


def test_gradient_reaches_every_parameter(name):
    mixer = make(name)
    (mixer(draw(2, 12, DIM))[0] * draw(2, 12, DIM)).sum().backward()
    for parameter_name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_compiles_to_one_graph(name):
    mixer, x = make(name), draw(2, 9, DIM)
    state = tuple(part.detach() for part in mixer(draw(2, 4, DIM))[1])
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[1, 5] = True
    torch.compiler.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for arguments in ((x,), (x, state, reset)):
        expected, last = mixer(*arguments)
        y, last_compiled = compiled(*arguments)
        assert error(y, expected) < 1e-10
        assert_states_close(last_compiled, last, 1e-10)
        parameters = list(mixer.parameters())
        for got, want in zip(
            torch.autograd.grad(y.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
            strict=True,
        ):
            assert error(got, want) < 1e-9


def test_exports(name):
    mixer, x = make(name, dtype=torch.float32).eval(), draw(2, 9, DIM, dtype=torch.float32)
    state = tuple(part.detach() for part in mixer(x)[1])
    program = torch.export.export(mixer, (x, state)).module()
    y, last = program(x, state)
    expected, expected_last = mixer(x, state)
    assert error(y, expected) < 1e-5
    assert_states_close(last, expected_last, 1e-5)


def test_state_dict_round_trip(name):
    mixer, x = make(name, dtype=torch.float32), draw(2, 6, DIM, dtype=torch.float32)
    torch.manual_seed(5)
    other = create_mixer(name, DIM)
    assert error(other(x)[0], mixer(x)[0]) > 1e-3
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x)[0], mixer(x)[0])
    # A complex parameter would lose its imaginary part in mixer.to(torch.bfloat16).
    assert not [key for key, value in mixer.state_dict().items() if value.is_complex()]


def test_logarithms_are_left_out_of_weight_decay(name):
    for parameter_name, parameter in make(name).named_parameters():
        if "log" in parameter_name.lower().split(".")[-1].split("_"):
            assert getattr(parameter, "_no_weight_decay", False), parameter_name


@pytest.mark.parametrize("dim", [1, 5, 24])
def test_any_dim_and_length_one(name, dim):
    mixer = make(name, dim)
    y, state = mixer(draw(2, 1, dim))
    assert y.shape == (2, 1, dim)
    assert torch.isfinite(y).all()
    assert [part.shape for part in state] == [part.shape for part in mixer.initial_state(2)]


def test_any_stride(name):
    mixer, x = make(name), draw(2, DIM, 21)
    for view in (x.transpose(1, 2), x.transpose(1, 2)[:, ::2], x.transpose(1, 2).flip(1)[:1].expand(3, -1, -1)):
        assert not view.is_contiguous()
        assert error(mixer(view)[0], mixer(view.contiguous())[0]) < 1e-10


def test_long_and_large_inputs_stay_finite(name):
    mixer, x = make(name, dtype=torch.float32), 100 * draw(1, 1500, DIM, dtype=torch.float32)
    x.requires_grad_()
    y, state = mixer(x)
    y.sum().backward()
    for tensor in (y, *state, x.grad, *(p.grad for p in mixer.parameters())):
        assert torch.isfinite(tensor).all()


def test_wrong_inputs_are_named(name):
    mixer = make(name)
    with pytest.raises(ValueError, match=r"x has 5 features on axis 2, expected dim = 8.*\(2, 3, 5\)"):
        mixer(draw(2, 3, 5))
    with pytest.raises(ValueError, match=r"x has 2 axes, \(2, 8\); expected 3"):
        mixer(draw(2, DIM))
    with pytest.raises(ValueError, match=r"step: x has shape \(2, 3, 8\), expected \(batch, 8\)"):
        mixer.step(draw(2, 3, DIM), None)
    with pytest.raises(ValueError, match="length 0 on axis 1"):
        mixer(draw(2, 0, DIM))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        mixer(torch.zeros(2, 3, DIM, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"reset has shape \(2, 4\), expected \(batch, length\) = \(2, 3\)"):
        mixer(draw(2, 3, DIM), None, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"reset is torch\.float32, expected torch\.bool"):
        mixer(draw(2, 3, DIM), None, torch.zeros(2, 3))


def test_wrong_states_are_named(name):
    mixer, x = make(name), draw(2, 3, DIM)
    first = next(iter(mixer.state_shapes))
    with pytest.raises(ValueError, match=f"state '{first}' has batch 3 on axis 0, x has batch 2"):
        mixer(x, mixer.initial_state(3))
    with pytest.raises(ValueError, match=f"state has 0 tensors, expected .*'{first}'"):
        mixer(x, ())
    wrong = tuple(torch.zeros(2, *shape, 7) for shape in mixer.state_shapes.values())
    with pytest.raises(ValueError, match=f"state '{first}' has shape .*7.*other arguments"):
        mixer(x, wrong)
