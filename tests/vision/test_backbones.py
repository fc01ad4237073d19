"""timm's contract of a backbone, held by every registered name: built small, with what the family calls its depth.

What timm's own tests of its models ask stands here, but for two: its models are scripted by TorchScript and traced by
torch.fx, which follow no choice that is made in Python, as the ops make theirs; :func:`test_exports` stands for both.
"""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.models import group_parameters

from scanweave.core import ConfigError, create_mixer
from scanweave.vision import list_backbones
from scanweave.vision.backbones import vim

NAMES = list_backbones()
each = pytest.mark.parametrize("name", NAMES)
FLAT = [name for name in NAMES if not name.startswith(("vmamba", "vim2"))]
flat = pytest.mark.parametrize("name", FLAT)
ONE_OF_EACH = ("plstm_vis_tiny", "scanvit_tiny", "vil_tiny", "vim2_tiny", "vim_tiny", "vir_small", "vmamba_tiny")
ONE_OF_EACH += ("vrwkv_tiny",)
SIDE = 32


def make(name, **kwargs):
    torch.manual_seed(0)
    small = {"num_classes": 7, "depth": 2, "embed_dim": 16, "patch_size": 8, "img_size": SIDE}
    if name.startswith("plstm_vis"):
        small["head_dim"] = 8
    if name not in FLAT:
        small = {"num_classes": 7, "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    return timm.create_model(name, **{**small, **kwargs})


def images(*shape):
    return torch.randn(*(shape or (2, 3, SIDE, SIDE)), generator=torch.Generator().manual_seed(1))


@each
def test_forward_and_a_gradient_in_every_parameter(name):
    model = make(name)
    side = SIDE if name in FLAT else 2 * SIDE  # a scan's decay counts from its second step on
    y = model(images(2, 3, side, side))
    assert y.shape == (2, 7)
    (y * images(2, 7)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@each
def test_features_then_head_is_the_whole(name):
    model = make(name).eval()
    x = images()
    features = model.forward_features(x)
    assert features.shape[-1 if getattr(model, "output_fmt", "NLC") != "NCHW" else 1] == model.num_features
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@each
def test_the_classifier_is_changed_and_taken_off(name):
    model = make(name).eval()
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images()), model.forward_features(images()))
    assert make(name, num_classes=0)(images()).shape == (2, make(name).head_hidden_size)
    bare = make(name, num_classes=0, global_pool="").eval()
    torch.testing.assert_close(bare(images()), bare.forward_features(images()))


@each
def test_intermediates_are_the_features_on_the_way(name):
    model = make(name).eval()
    final, found = model.forward_intermediates(images())
    torch.testing.assert_close(final, model.forward_features(images()))
    assert len(found) == len(model.feature_info)
    for feature, info in zip(found, model.feature_info, strict=True):
        assert feature.shape == (2, info["num_chs"], SIDE // info["reduction"], SIDE // info["reduction"])
    last = model.forward_intermediates(images(), indices=1, intermediates_only=True)
    torch.testing.assert_close(last[0], found[-1])
    first = model.forward_intermediates(images(), indices=[0], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(first[0], found[0])
    with pytest.raises((ValueError, AssertionError), match="output"):
        model.forward_intermediates(images(), output_fmt="NDHWC")
    other = "NLC" if name in FLAT else "NHWC"
    moved = model.forward_intermediates(images(), output_fmt=other, intermediates_only=True)
    for a, b in zip(moved, found, strict=True):
        torch.testing.assert_close(a, b.flatten(2).mT if name in FLAT else b.movedim(1, -1))
    normed = model.forward_intermediates(images(), norm=True, output_fmt=other, intermediates_only=True)
    for i, (a, b) in enumerate(zip(normed, moved, strict=True)):
        torch.testing.assert_close(a, model.norm(b) if name in FLAT or i == len(found) - 1 else b)


@flat
def test_class_tokens_come_beside_the_patches(name):
    model = make(name).eval()
    features, found = model.forward_intermediates(images(), norm=True, output_fmt="NLC", return_prefix_tokens=True)
    if model.num_prefix_tokens:
        patches, token = found[-1]
        torch.testing.assert_close(token[:, 0], model.forward_head(features, pre_logits=True))
        torch.testing.assert_close(model.join(patches, token), features)
    else:
        torch.testing.assert_close(found[-1], features)


@each
def test_pruned_layers_leave_the_rest_as_it_was(name):
    model = make(name).eval()
    expected = model.forward_intermediates(images(), indices=[0], intermediates_only=True)
    parameters = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0]) == [0]
    found = model.forward_intermediates(images(), indices=[0], intermediates_only=True)
    torch.testing.assert_close(found, expected)
    assert sum(p.numel() for p in model.parameters()) < parameters
    model, x = make(name).eval(), images()
    expected = model(x)
    assert model.prune_intermediate_layers(prune_head=False) == [len(model.feature_info) - 1]
    torch.testing.assert_close(model(x), expected)
    model.prune_intermediate_layers(prune_norm=True)
    torch.testing.assert_close(
        model(x), model.forward_intermediates(x, norm=False, output_fmt="NLC" if name in FLAT else "NHWC")[0]
    )
    assert model.num_classes == 0


@each
def test_features_only(name):
    whole = make(name).eval()
    count = len(whole.feature_info)
    model = make(name, features_only=True, out_indices=list(range(count))).eval()
    model.load_state_dict(whole.state_dict(), strict=False)
    found = model(images())
    expected = whole.forward_intermediates(images(), intermediates_only=True)
    assert model.feature_info.channels() == [info["num_chs"] for info in whole.feature_info]
    assert model.feature_info.reduction() == [info["reduction"] for info in whole.feature_info]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    model = make(name, features_only=True, out_indices=(0, -1)).eval()
    model.load_state_dict(whole.state_dict(), strict=False)
    for a, b in zip(model(images()), (expected[0], expected[-1]), strict=True):
        torch.testing.assert_close(a, b)
    assert make(name, features_only=True, **({"depth": 3} if name in FLAT else {})).feature_info.channels()[2:]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_weights_of_a_file_fit_other_channels_and_classes(name, tmp_path):
    source = make(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    own = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 7}}
    torch.testing.assert_close(make(name, **own).eval()(images()), source.eval()(images()))
    grey = make(name, **own, in_chans=1, num_classes=5).eval()
    assert grey(images(2, 1, SIDE, SIDE)).shape == (2, 5)
    colours = images(2, 1, SIDE, SIDE).expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey.forward_features(colours[:, :1]), source.forward_features(colours))
    bare = make(name, **own, num_classes=0).eval()
    torch.testing.assert_close(bare.forward_features(images()), source.forward_features(images()))
    features = make(name, **own, features_only=True, out_indices=[-1]).eval()(images())
    torch.testing.assert_close(features[-1], source.forward_intermediates(images(), intermediates_only=True)[-1])


@each
def test_checkpointing_changes_no_gradient(name):
    plain, spared = make(name), make(name)
    spared.set_grad_checkpointing()
    for model in (plain, spared):
        (model(images()) * images(2, 7)).sum().backward()
    for (parameter_name, a), b in zip(plain.named_parameters(), spared.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=parameter_name)


@each
def test_other_channels_and_sizes(name):
    assert make(name, in_chans=1)(images(1, 1, SIDE, SIDE)).shape == (1, 7)
    model = make(name).eval()
    for size in ((64, 64), (64, 32), (32, 96)):
        assert model(images(1, 3, *size)).shape == (1, 7)
        features = model.forward_intermediates(images(1, 3, *size), intermediates_only=True)
        reduction = model.feature_info[-1]["reduction"]
        assert features[-1].shape[2:] == (size[0] // reduction, size[1] // reduction)
    assert make(name, global_pool="avg")(images()).shape == (2, 7)
    if name in FLAT:
        with pytest.raises(AssertionError, match=r"Input height \(36\) should be divisible by patch size \(8\)"):
            model(images(1, 3, 36, SIDE))
    else:
        assert model(images(1, 3, 45, 37)).shape == (1, 7)


@each
def test_optimisers_find_their_groups(name):
    model = make(name)
    names = {parameter_name for parameter_name, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    decays = {n for n, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert decays <= model.no_weight_decay()
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert {n for group in groups.values() for n in group} == names
    assert len(groups) > 1


@each
def test_drop_path_and_dtype_are_passed_on(name):
    model = make(name, drop_path_rate=0.9, drop_rate=0.5).train()
    x = images()
    assert not torch.equal(model(x), model(x))
    half = make(name, dtype=torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert make(name, device="meta").get_classifier().weight.is_meta


@each
def test_configuration(name):
    config = make(name).pretrained_cfg
    assert config["num_classes"] == 1000
    assert config["classifier"] == "head" or config["classifier"].startswith("head.")
    model = make(name)
    stem = model.get_submodule(config["first_conv"])
    assert isinstance(stem, torch.nn.Conv2d)
    assert stem.in_channels == 3
    assert isinstance(model.get_submodule(config["classifier"]), torch.nn.Linear)
    if name not in FLAT:
        features = model.forward_features(images(1, *config["input_size"]))
        assert features.shape[1:3] == config["pool_size"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_exports(name):
    model, x = make(name, **({} if name in FLAT else {"depths": (1, 1), "dims": (8, 16)})).eval(), images()
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("mixer", ["mingru", "retention", "plstm2d"])
def test_any_mixer_in_the_shell(mixer):
    model = make("scanvit_tiny", mixer=mixer, orders=("hilbert", "hilbert-reversed"))
    assert model(images()).shape == (2, 7)


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"no mixer 'glaa' \(did you mean 'gla'\?\)"):
        make("scanvit_tiny", mixer="glaa")
    with pytest.raises(ValueError, match="global_pool is 'token', expected one of"):
        make("scanvit_tiny", global_pool="token")
    model = make("plstm_vis_tiny")
    with pytest.raises(ValueError, match="6 patches are no square"):
        model.forward_head(torch.zeros(1, 6, 16))


COUNTS = {  # as published, in millions, at the digits printed
    "vim_tiny": "7.15",
    "vim_small": "26",
    "vim_base": "98",
    "vil_tiny": "6.39",
    "plstm_vis_tiny": "6",
    "plstm_vis_small": "23",
    "plstm_vis_base": "89",
    "vrwkv_tiny": "6.2",
    "vrwkv_small": "23.8",
    "vrwkv_base": "93.7",
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_published(name):
    count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
    digits = len(COUNTS[name].partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == COUNTS[name]


@flat
def test_positions_follow_the_image(name):
    model = make(name).eval()
    whole, _ = model._tokens(images(1, 3, SIDE, SIDE))
    larger, size = model._tokens(images(1, 3, 2 * SIDE, SIDE))
    assert size == (8, 4)
    assert larger.shape[1] - model.num_prefix_tokens == 2 * (whole.shape[1] - model.num_prefix_tokens)


def test_published_names_and_sizes_are_taken_over():
    small, large = make("vim_tiny"), make("vim_tiny", img_size=64)
    published = {
        re.sub(r"^norm\.", "norm_f.", re.sub(r"^blocks\.", "layers.", name)): value
        for name, value in small.state_dict().items()
    }
    assert "norm_f.weight" in published
    large.load_state_dict(vim.checkpoint_filter_fn(published, large))
    torch.testing.assert_close(large(images()), small(images()), rtol=1e-2, atol=1e-2)


def test_vims_directions_are_two_mambas():
    """One direction is the mixer mamba with the same weights, the other that of the sequence turned round."""
    model = make("vim_tiny")
    mixer, x = model.blocks[0].mixer, images(2, 9, 16)
    size = (3, 3)
    outputs = []
    for end in ("", "_b"):
        mamba = create_mixer("mamba", 16)
        state = {key: value for key, value in mixer.state_dict().items() if key.startswith(("in_proj", "out_proj"))}
        for part in ("conv1d", "x_proj", "dt_proj"):
            state |= {f"{part}.{k}": v for k, v in mixer.get_submodule(part + end).state_dict().items()}
        state |= {"A_log": mixer.A_b_log if end else mixer.A_log, "D": mixer.D_b if end else mixer.D}
        mamba.load_state_dict(state)
        outputs.append(mamba(x.flip(1))[0].flip(1) if end else mamba(x)[0])
    torch.testing.assert_close(mixer(x, size), sum(outputs) / 2, rtol=1e-4, atol=1e-6)


def test_vir_sees_everything_from_its_last_token():
    model, x = make("vir_small").eval(), images(1, 3, SIDE, SIDE).requires_grad_()
    model(x)[0, 0].backward()
    assert (x.grad.abs().sum(1) > 0).all()
