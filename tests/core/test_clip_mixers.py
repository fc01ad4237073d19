"""The contract of a mixer of clips, held by every registered name; and what ConvS5 and ConvLSTM are."""

from __future__ import annotations

import copy

import pytest
import torch

from scanweave.core import ConfigError, create_clip_mixer, create_mixer, list_mixers

each = pytest.mark.parametrize("name", list_mixers("clip"))
DIM, SIZE = 4, (5, 3)


def make(name, **kwargs):
    torch.manual_seed(0)
    small = {"d_state": 6} if name == "convs5" else {}
    return create_clip_mixer(name, DIM, **{**small, **kwargs}).double()


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def clip(batch=2, frames=7):
    return draw(batch, frames, *SIZE, DIM)


@each
def test_forward_is_the_fold_of_step(name):
    mixer, x = make(name), clip()
    y, last = mixer(x)
    state, outputs = None, []
    for frame in x.unbind(1):
        out, state = mixer.step(frame, state)
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), y)
    torch.testing.assert_close(state, last)
    assert y.shape == x.shape


@each
def test_two_parts_equal_the_whole_and_so_do_their_gradients(name):
    mixer, x = make(name), clip().requires_grad_()
    inputs, weight = [x, *mixer.parameters()], clip()
    y, last = mixer(x)
    first, state = mixer(x[:, :3])
    second, end = mixer(x[:, 3:], state)
    parts = torch.cat([first, second], 1)
    torch.testing.assert_close(parts, y)
    torch.testing.assert_close(end, last)
    expected = torch.autograd.grad((y * weight).sum(), inputs)
    found = torch.autograd.grad((parts * weight).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0


@each
def test_a_reset_starts_a_clip_of_its_own(name):
    mixer, x = make(name), clip()
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 4] = reset[1, 0] = True
    before = mixer(clip(2, 3))[1]
    y, _ = mixer(x, before, reset)
    torch.testing.assert_close(y[0, 4:], mixer(x[:1, 4:])[0][0])
    torch.testing.assert_close(y[1:], mixer(x[1:])[0])
    torch.testing.assert_close(y[:1, :4], mixer(x[:1, :4], tuple(part[:1] for part in before))[0])


@each
def test_causal_and_remembers(name):
    mixer, x = make(name), clip()
    changed = x.clone()
    changed[:, 3, 2, 1] += 1
    difference = (mixer(changed)[0] - mixer(x)[0]).abs().amax((0, 2, 3, 4))
    assert (difference[:3] == 0).all()
    assert (difference[3:] > 1e-9).all()


@each
def test_half_precision_and_autocast_are_close(name):
    single = make(name).bfloat16().float()
    x = clip().bfloat16()
    expected, _ = single(x.float())
    y, state = copy.deepcopy(single).bfloat16()(x)
    assert y.dtype == torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    assert (y.float() - expected).norm() / expected.norm() < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        cast, state = single(x.float())
    assert {part.dtype for part in state} == {torch.float32}
    assert (cast.float() - expected).norm() / expected.norm() < 0.03


@each
def test_compiles_to_one_graph(name):
    mixer, x = make(name), clip()
    torch.testing.assert_close(torch.compile(mixer, backend="aot_eager", fullgraph=True)(x)[0], mixer(x)[0])


@each
def test_exports_for_clips_of_any_batch(name):
    mixer, x = make(name), clip(frames=3)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(mixer, (x,), dynamic_shapes=({0: batch},)).module()
    for count in (1, 3):
        other = clip(count, 3)
        (y, state), (expected, last) = program(other), mixer(other)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(state, last)


@each
def test_exports_a_step_from_a_state(name):
    mixer, x = make(name), clip(frames=3)
    _, state = mixer(x)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = mixer

        def forward(self, frame, state):
            return self.mixer.step(frame, state)

    program = torch.export.export(Step(), (x[:, 0], state)).module()
    torch.testing.assert_close(program(x[:, 1], state), mixer.step(x[:, 1], state))


@each
def test_what_does_not_fit_is_named(name):
    mixer, x = make(name), clip()
    who = type(mixer).__name__
    _, state = mixer(x)
    with pytest.raises(
        ValueError, match=rf"{who}: x has shape \(7, 5, 3, 4\), expected \(batch, frames, height, width, 4\)"
    ):
        mixer(x[0])
    with pytest.raises(ValueError, match=rf"{who}: x has 3 features on its last axis, expected dim = 4"):
        mixer(x[..., :3])
    with pytest.raises(ValueError, match=rf"{who}: x has an axis of length 0.*\(2, 0, 5, 3, 4\)"):
        mixer(x[:, :0])
    with pytest.raises(TypeError, match=rf"{who}: x is torch\.int64, expected a floating point dtype"):
        mixer(x.long())
    with pytest.raises(ValueError, match=rf"{who}: reset is torch\.bool \(2, 6\), expected torch\.bool.*\(2, 7\)"):
        mixer(x, None, torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(TypeError, match=rf"{who}: reset is torch\.float32 \(2, 7\), expected torch\.bool"):
        mixer(x, None, torch.zeros(2, 7))
    with pytest.raises(ValueError, match=rf"{who}: the state's shapes are .*\(2, 5, 3, .*expected .*\(1, 5, 3, "):
        mixer(x[:1], state)
    with pytest.raises(ValueError, match=rf"{who}: the state's shapes are \[\], expected"):
        mixer(x, ())
    with pytest.raises(ValueError, match=rf"{who}\.step: x has shape \(2, 7, 5, 3, 4\), expected \(B, H, W, 4\)"):
        mixer.step(x, state)
    with pytest.raises(ConfigError, match=f"mixer '{name}' has no argument 'kernels' .did you mean 'kernel'"):
        make(name, kernels=3)
    with pytest.raises(ConfigError, match=f"mixer '{name}': dim is 0, expected at least 1"):
        create_clip_mixer(name, 0)


def test_wrong_states_of_convs5_are_named():
    with pytest.raises(ConfigError, match="convs5: d_state is 7, expected a multiple"):
        make("convs5", d_state=7)
    with pytest.raises(ConfigError, match="convs5: d_state is 6, expected a multiple of 2"):
        make("convs5", blocks=2)
    with pytest.raises(ConfigError, match=r"convs5: dt_min is 0\.5 and dt_max 0\.1, expected 0 < dt_min <= dt_max"):
        make("convs5", dt_min=0.5)


def test_convs5_with_one_pixel_kernels_is_s5_at_every_pixel():
    clips, series = make("convs5", kernel=1), create_mixer("s5", DIM, d_state=6).double()
    state = clips.state_dict()
    state |= {name: state[name][:, :, 0, 0] for name in ("B", "C")}
    series.load_state_dict(state)
    x = clip()
    along = x.permute(0, 2, 3, 1, 4).flatten(0, 2)
    expected = series(along)[0].unflatten(0, (2, *SIZE)).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(clips(x)[0], expected)


def test_what_a_pixel_says_spreads_by_the_kernels():
    """One frame passes two convolutions of 3 x 3: what a pixel says is heard two pixels off, and no further."""
    mixer, x = make("convs5"), draw(1, 2, 9, 9, DIM).requires_grad_()
    (seen,) = torch.autograd.grad(mixer(x)[0][0, 1, 4, 4] @ draw(DIM), x)
    heard = seen[0].abs().sum(-1) > 0
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[2:7, 2:7] = True
    assert torch.equal(heard, inside.expand(2, 9, 9))


def test_convlstm_with_one_pixel_kernels_is_an_lstm_at_every_pixel():
    mixer, x = make("convlstm", kernel=1), clip()
    lstm = torch.nn.LSTM(DIM, DIM, batch_first=True).double()
    lstm.load_state_dict(
        {
            "weight_ih_l0": mixer.into[:, :, 0, 0],
            "weight_hh_l0": mixer.hidden[:, :, 0, 0],
            "bias_ih_l0": mixer.bias,
            "bias_hh_l0": torch.zeros_like(mixer.bias),
        }
    )
    along = x.permute(0, 2, 3, 1, 4).flatten(0, 2)
    expected = lstm(along)[0].unflatten(0, (2, *SIZE)).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(mixer(x)[0], expected)


@each
def test_an_even_kernel_is_named(name):
    with pytest.raises(ConfigError, match=f"{name}: kernel is 2, expected an odd number"):
        make(name, kernel=2)
