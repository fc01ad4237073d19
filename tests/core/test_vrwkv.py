"""Vision-RWKV's average in both directions and its shift of pixels against the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch

from scanweave.core import create_grid_mixer
from scanweave.core.mixers.vrwkv import bidirectional_wkv
from scanweave.core.shift import pixel_shift
from tests.core.papers import draw, stir


def formula(k, v, w, u):
    """Equation 3, every pair of tokens written out."""
    T = k.shape[1]
    place = torch.arange(T)
    distance = (place[:, None] - place).abs().unsqueeze(-1)
    exponent = k[:, None] - (distance - 1) * w / T
    exponent = torch.where(distance == 0, (u + k)[:, None], exponent)
    return torch.einsum("btic,bic->btc", exponent.softmax(2), v)


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_the_average_is_its_formula_and_so_are_its_gradients(length, scale):
    k, v = scale * draw(2, length, 6), draw(3, length, 6)[1:]
    w, u = scale * torch.linspace(-3, 3, 6).double(), scale * draw(6)
    arguments = [x.requires_grad_() for x in (k, v, w, u)]
    found, expected = bidirectional_wkv(*arguments), formula(*arguments)
    torch.testing.assert_close(found, expected)
    weight = draw(*found.shape)
    gradients = torch.autograd.grad((found * weight).sum(), arguments)
    for a, b in zip(gradients, torch.autograd.grad((expected * weight).sum(), arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_average_holds_in_half_precision():
    k, v, w, u = 10 * draw(1, 100, 4), draw(1, 100, 4), 5 * draw(4), draw(4)
    found = bidirectional_wkv(k.bfloat16(), v.bfloat16(), w.float(), u.float())
    assert found.dtype == torch.bfloat16
    expected = formula(k.bfloat16().double(), v.bfloat16().double(), w, u)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)


def test_each_quarter_of_the_channels_comes_from_one_neighbour():
    image = torch.arange(1.0, 10).view(1, 3, 3, 1).expand(-1, -1, -1, 9)
    from_left, _, from_right, _, from_above, _, from_below, _, own = pixel_shift(image)[0].unbind(-1)
    assert from_left.tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert from_right.tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert from_above.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert from_below.tolist() == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert torch.equal(own, image[0, :, :, 0])


def test_a_series_and_a_clips_frames_are_shifted_by_themselves():
    series = torch.tensor([1.0, 2, 3]).view(1, 3, 1).expand(-1, -1, 4)
    assert pixel_shift(series)[0].T.tolist() == [[0, 1, 2], [2, 3, 0], [0, 0, 0], [0, 0, 0]]
    clip = draw(2, 3, 4, 5, 8)
    assert torch.equal(pixel_shift(clip), torch.stack([pixel_shift(frame) for frame in clip.unbind(1)], 1))


@pytest.mark.parametrize("key_norm", [False, True])
def test_the_mixer_is_its_formula(key_norm):
    torch.manual_seed(0)
    mixer = create_grid_mixer("vrwkv", 10, layer=1, layers=3, key_norm=key_norm).double().requires_grad_(False)
    stir(mixer)
    x = draw(2, 3, 4, 10)
    shifted = pixel_shift(x)
    k, v, r = (
        project(x * mix + shifted * (1 - mix)).flatten(1, 2)
        for project, mix in (
            (mixer.key, mixer.spatial_mix_k),
            (mixer.value, mixer.spatial_mix_v),
            (mixer.receptance, mixer.spatial_mix_r),
        )
    )
    y = formula(k, v, mixer.spatial_decay, mixer.spatial_first)
    if key_norm:
        norm = mixer.key_norm
        y = torch.nn.functional.layer_norm(y, (10,), norm.weight, norm.bias)
    expected = mixer.output(torch.sigmoid(r) * y).unflatten(1, (3, 4))
    torch.testing.assert_close(mixer(x), expected)


def test_it_starts_as_its_authors_layer():
    C, layer, layers = 9, 2, 5
    mixer = create_grid_mixer("vrwkv", C, layer=layer, layers=layers)
    for n in range(C):
        decay = -5 + 8 * (n / (C - 1)) ** (0.7 + 1.3 * layer / (layers - 1))
        assert mixer.spatial_decay[n].item() == pytest.approx(decay, abs=1e-6)
        assert mixer.spatial_first[n].item() == pytest.approx(math.log(0.3) + 0.5 * ((n + 1) % 3 - 1), abs=1e-6)
        own = (n / C) ** (1 - layer / layers)
        assert mixer.spatial_mix_k[0, 0, n].item() == pytest.approx(own, abs=1e-6)
        assert mixer.spatial_mix_v[0, 0, n].item() == pytest.approx(own + 0.3 * layer / (layers - 1), abs=1e-6)
        assert mixer.spatial_mix_r[0, 0, n].item() == pytest.approx(own**0.5, abs=1e-6)


def test_it_compiles_and_exports():
    torch.manual_seed(0)
    mixer, x = create_grid_mixer("vrwkv", 8).double(), draw(2, 3, 4, 8)
    expected = mixer(x)
    torch.testing.assert_close(torch.compile(mixer, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(mixer, (x,)).module()(x), expected)
