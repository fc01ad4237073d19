"""Weights under the names of their authors' releases: they load strictly, and into the places they belong."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn.functional import conv2d, layer_norm

from scanweave.core import ConfigError
from scanweave.vision.backbones import vil, vim, vrwkv

DIM, SIDE, CLASSES = 16, 16, 7
SMALL = {"num_classes": CLASSES, "embed_dim": DIM, "patch_size": 8, "img_size": SIDE, "depth": 2}


def draw(shapes):
    """Return a state dict of distinct random values."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def image(side=SIDE):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- ViL -------------------------------------------------------------------------------------------------------------


def vil_layer(conv):
    inner, blocks = 2 * DIM, 2 * DIM // 4
    shapes = {"proj_up.weight": (2 * inner, DIM), "proj_up.bias": (2 * inner,), "learnable_skip": (inner,)}
    shapes |= {"proj_down.weight": (DIM, inner), "proj_down.bias": (DIM,)}
    for part in "qkv":
        shapes |= {f"{part}_proj.weight": (blocks, 4, 4), f"{part}_proj.bias": (inner,)}
    shapes |= {f"{conv}.weight": (inner, 1, 3, 3), f"{conv}.bias": (inner,)}
    for gate in "if":
        shapes |= {f"mlstm_cell.{gate}gate.weight": (4, 3 * inner), f"mlstm_cell.{gate}gate.bias": (4,)}
    return shapes | {"mlstm_cell.outnorm.weight": (inner,), "mlstm_cell.outnorm.bias": (inner,)}


def vil_network():
    """The names of the release's network VisionLSTM2: pairs of blocks."""
    shapes = {"patch_embed.proj.weight": (DIM, 3, 8, 8), "patch_embed.proj.bias": (DIM,)}
    shapes["pos_embed.embed"] = (1, 2, 2, DIM)
    for direction in ("top_left", "bot_right"):
        block = f"blocks.0.rowwise_from_{direction}"
        shapes |= {f"{block}.norm.weight": (DIM,), f"{block}.norm.bias": (DIM,)}
        shapes |= {f"{block}.layer.{name}": shape for name, shape in vil_layer("conv").items()}
    shapes |= {"norm.weight": (DIM,), "norm.bias": (DIM,)}
    shapes |= {"legacy_norm.weight": (2 * DIM,), "legacy_norm.bias": (2 * DIM,)}
    return shapes | {"head.weight": (CLASSES, 2 * DIM), "head.bias": (CLASSES,)}


def vil_file(weights):
    """The same weights as the files to download name them: a training script's state."""
    renamed = {"xlstm.blocks.0.xlstm.mlstm_cell.causal_mask": torch.ones(4, 4)}
    for name, value in weights.items():
        for i, direction in enumerate(("top_left", "bot_right")):
            name = name.replace(f"blocks.0.rowwise_from_{direction}.", f"xlstm.blocks.{i}.")
        name = name.replace(".norm.", ".xlstm_norm.").replace(".layer.", ".xlstm.").replace(".conv.", ".conv1d.")
        name = "xlstm.post_blocks_" + name if name.startswith("norm.") else name
        name = name.replace("head.", "head.1.").replace("legacy_norm.", "head.0.")
        renamed[name] = value
    return {"state_dict": renamed}


def make_vil(**kwargs):
    return timm.create_model("vil_tiny", **{**SMALL, "head_norm": True, **kwargs}).eval()


def test_vils_network_and_its_files_are_one():
    weights, (first, second) = draw(vil_network()), (make_vil(), make_vil())
    first.load_state_dict(vil.checkpoint_filter_fn(weights, first))
    second.load_state_dict(vil.checkpoint_filter_fn(vil_file(weights), second))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    first.load_state_dict(vil.checkpoint_filter_fn(second.state_dict(), first))


def test_vils_weights_do_what_they_did():
    weights, model = draw(vil_network()), make_vil()
    model.load_state_dict(vil.checkpoint_filter_fn(weights, model))
    tokens, size = model._tokens(image())
    patches = conv2d(image(), weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 8)
    torch.testing.assert_close(tokens, patches.flatten(2).mT + weights["pos_embed.embed"].flatten(1, 2))
    # The release's norms of tokens multiply by 1 + weight; the one in front of the head by its weight.
    for block, direction in zip(model.blocks, ("top_left", "bot_right"), strict=True):
        of = f"blocks.0.rowwise_from_{direction}."
        normed = layer_norm(tokens, (DIM,), 1 + weights[of + "norm.weight"], weights[of + "norm.bias"])
        torch.testing.assert_close(block.norm(tokens), normed)
        assert block.mixer.backwards == (direction == "bot_right")
        assert torch.equal(block.mixer.q_proj.weight, weights[of + "layer.q_proj.weight"])
        assert torch.equal(block.mixer.conv.weight, weights[of + "layer.conv.weight"])
        tokens = tokens + block.mixer(normed, size)
    tokens = layer_norm(tokens, (DIM,), 1 + weights["norm.weight"], weights["norm.bias"])
    ends = torch.cat([tokens[:, 0], tokens[:, -1]], -1)
    ends = layer_norm(ends, (2 * DIM,), weights["legacy_norm.weight"], weights["legacy_norm.bias"], 1e-6)
    torch.testing.assert_close(model(image()), ends @ weights["head.weight"].T + weights["head.bias"])


def test_vils_file_serves_timm_and_other_image_sizes(tmp_path):
    path = tmp_path / "vil2.th"
    torch.save(vil_file(draw(vil_network())), path)
    overlay = {"file": str(path), "num_classes": CLASSES}
    model = make_vil(pretrained=True, pretrained_cfg_overlay=overlay, img_size=24)
    assert model.pos_embed.shape == (1, 9, DIM)
    assert torch.isfinite(model(image(24))).all()


def test_what_is_no_second_vil_is_named():
    weights = draw(vil_network())
    with pytest.raises(ConfigError, match="build the model with head_norm=True"):
        vil.checkpoint_filter_fn(weights, make_vil(head_norm=False))
    plain = {name: value for name, value in weights.items() if "legacy" not in name}
    with pytest.raises(ConfigError, match="does not norm what the head sees: build the model with head_norm=False"):
        vil.checkpoint_filter_fn(plain, make_vil())
    with pytest.raises(ConfigError, match="ViL's first version"):
        vil.checkpoint_filter_fn({"xlstm.blocks.0.xlstm.conv1d.conv.weight": torch.zeros(32, 1, 4)}, make_vil())
    with pytest.raises(ValueError, match="head_norm goes with global_pool 'ends', found 'avg'"):
        make_vil(global_pool="avg")
    less = {name: value for name, value in weights.items() if name != "norm.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*norm\.bias"):
        make_vil().load_state_dict(vil.checkpoint_filter_fn(less, make_vil()))


# --- Vim -------------------------------------------------------------------------------------------------------------


def test_vims_file_is_taken_over():
    inner, states, rank = 2 * DIM, 16, 1
    shapes = {"cls_token": (1, 1, DIM), "pos_embed": (1, 5, DIM), "norm_f.weight": (DIM,)}
    shapes |= {"patch_embed.proj.weight": (DIM, 3, 8, 8), "patch_embed.proj.bias": (DIM,)}
    shapes |= {"head.weight": (CLASSES, DIM), "head.bias": (CLASSES,)}
    for i in range(2):
        mixer = {"in_proj.weight": (2 * inner, DIM), "out_proj.weight": (DIM, inner), "A_log": (inner, states)}
        mixer |= {"A_b_log": (inner, states), "D": (inner,), "D_b": (inner,)}
        for end in ("", "_b"):
            mixer |= {f"conv1d{end}.weight": (inner, 1, 4), f"conv1d{end}.bias": (inner,)}
            mixer |= {f"x_proj{end}.weight": (rank + 2 * states, inner)}
            mixer |= {f"dt_proj{end}.weight": (inner, rank), f"dt_proj{end}.bias": (inner,)}
        shapes |= {f"layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"layers.{i}.norm.weight"] = (DIM,)
    weights, model = draw(shapes), timm.create_model("vim_tiny", **SMALL).eval()
    model.load_state_dict(vim.checkpoint_filter_fn({"model": weights}, model))
    assert torch.equal(model.blocks[1].mixer.A_b_log, weights["layers.1.mixer.A_b_log"])
    assert torch.equal(model.norm.weight, weights["norm_f.weight"])
    assert torch.isfinite(model(image())).all()


# --- Vision-RWKV -----------------------------------------------------------------------------------------------------


def vrwkv_file(extra, head):
    shapes = {"backbone.pos_embed": (1, 4, DIM), "backbone.patch_embed.projection.weight": (DIM, 3, 8, 8)}
    shapes |= {"backbone.patch_embed.projection.bias": (DIM,)}
    for name in ("ln1", "layers.0.ln0", *(f"layers.{i}.ln{n}" for i in range(2) for n in (1, 2))):
        shapes |= {f"backbone.{name}.weight": (DIM,), f"backbone.{name}.bias": (DIM,)}
    for i in range(2):
        att = {"spatial_decay": (DIM,), "spatial_first": (DIM,)}
        att |= {f"spatial_mix_{s}": (1, 1, DIM) for s in "kvr"}
        att |= {f"{name}.weight": (DIM, DIM) for name in ("key", "value", "receptance", "output")}
        ffn = {f"spatial_mix_{s}": (1, 1, DIM) for s in "kr"}
        ffn |= {"key.weight": (4 * DIM, DIM), "receptance.weight": (DIM, DIM), "value.weight": (DIM, 4 * DIM)}
        parts = {f"att.{name}": shape for name, shape in att.items()}
        parts |= {f"ffn.{name}": shape for name, shape in ffn.items()}
        if extra:
            parts |= {"gamma1": (DIM,), "gamma2": (DIM,)}
            for end in ("weight", "bias"):
                parts |= {f"att.key_norm.{end}": (DIM,), f"ffn.key_norm.{end}": (4 * DIM,)}
        shapes |= {f"backbone.layers.{i}.{name}": shape for name, shape in parts.items()}
    return draw(shapes | head)


LINEAR = {"head.fc.weight": (CLASSES, DIM), "head.fc.bias": (CLASSES,)}


@pytest.mark.parametrize(("name", "extra"), [("vrwkv_tiny", False), ("vrwkv_large", True)])
def test_vrwkvs_file_is_taken_over(name, extra):
    weights, model = vrwkv_file(extra, LINEAR), timm.create_model(name, **SMALL).eval()
    model.load_state_dict(vrwkv.checkpoint_filter_fn({"state_dict": weights}, model))
    assert torch.equal(model.norm.weight, weights["backbone.ln1.weight"])
    assert torch.equal(model.head.weight, weights["head.fc.weight"])
    # The release's kernel is given the bonus over the number of tokens.
    first = weights["backbone.layers.1.att.spatial_first"] / 4
    assert torch.equal(model.blocks[1].att.spatial_first, first)
    assert torch.equal(model.blocks[0].att.spatial_decay, weights["backbone.layers.0.att.spatial_decay"])
    y = model(image())
    model.load_state_dict(vrwkv.checkpoint_filter_fn(model.state_dict(), model))
    assert torch.equal(model(image()), y)


def test_other_vrwkvs_are_named():
    plain, large = timm.create_model("vrwkv_tiny", **SMALL), timm.create_model("vrwkv_large", **SMALL)
    with pytest.raises(ConfigError, match=r"file's blocks have att\.key_norm\.weight, the model's have not.*key_norm"):
        vrwkv.checkpoint_filter_fn(vrwkv_file(True, LINEAR), plain)
    with pytest.raises(ConfigError, match=r"model's blocks have gamma1, the file's have not.*another layer_scale"):
        vrwkv.checkpoint_filter_fn(vrwkv_file(False, LINEAR), timm.create_model("vrwkv_base", key_norm=False, **SMALL))
    deep = vrwkv_file(True, {"head.0.weight": (9, DIM), "head.2.weight": (CLASSES, 9)})
    with pytest.raises(ConfigError, match=r"head\.0\.weight, one layer of a head of two.*num_classes=0"):
        vrwkv.checkpoint_filter_fn(deep, large)
    large.reset_classifier(0)
    large.load_state_dict(vrwkv.checkpoint_filter_fn(deep, large))
