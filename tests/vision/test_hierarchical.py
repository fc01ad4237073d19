"""What backbones of four resolutions owe besides timm's contract: sizes, scans, averages."""

from __future__ import annotations

import pytest
import timm
import torch

from scanweave.core import ConfigError
from scanweave.core.orders import CROSS_SCAN, create_order
from scanweave.kernels import selective_scan
from scanweave.vision.backbones.hierarchical import checkpoint_filter_fn
from scanweave.vision.backbones.vim2 import AveragedStage, ChannelMixer
from scanweave.vision.backbones.vmamba import SS2D, cross_orders

COUNTS = {  # as published, in millions, at the digits printed
    "vmamba_tiny": "30.25",
    "vmamba_small": "50",
    "vmamba_base": "89",
    "vim2_tiny": "20",
    "vim2_small": "43",
    "vim2_base": "74",
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_published(name):
    count = sum(p.numel() for p in timm.create_model(name, device="meta").parameters())
    digits = len(COUNTS[name].partition(".")[2])
    assert f"{count / 1e6:.{digits}f}" == COUNTS[name]


def test_the_cross_scan_reads_rows_columns_and_both_from_the_end():
    assert (cross_orders((2, 3)) + 1).tolist() == [
        [1, 2, 3, 4, 5, 6],
        [1, 4, 2, 5, 3, 6],
        [6, 5, 4, 3, 2, 1],
        [6, 3, 5, 2, 4, 1],
    ]
    named = torch.stack([create_order(name).index((4, 7)) for name in CROSS_SCAN])
    assert torch.equal(cross_orders((4, 7)), named)


@pytest.mark.parametrize("d_state", [1, 4])
def test_one_call_scans_as_four_do(d_state):
    torch.manual_seed(0)
    layer = SS2D(20, ratio=2.0, d_state=d_state)
    u = torch.randn(2, 3, 5, 40)
    expected = torch.zeros(2, 15, 40)
    for k, order in enumerate(cross_orders((3, 5))):
        tokens = u.flatten(1, 2)[:, order]
        low, B, C = (tokens @ layer.x_proj_weight[k].T).split([2, d_state, d_state], -1)
        at = slice(40 * k, 40 * (k + 1))
        y, _ = selective_scan(
            tokens,
            low @ layer.dt_projs_weight[k].T,
            -layer.A_logs[at].exp(),
            B,
            C,
            D=layer.Ds[at],
            dt_bias=layer.dt_projs_bias[k],
        )
        expected[:, order] += y
    torch.testing.assert_close(layer.scan(u).flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_published_names_are_taken_over():
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 7}
    model, other = timm.create_model("vmamba_tiny", **small).eval(), timm.create_model("vmamba_tiny", **small).eval()
    published = {}
    for name, value in model.state_dict().items():
        for i in range(3):
            name = name.replace(f"stages.{i + 1}.downsample", f"layers.{i}.downsample")
        name = name.replace("stages.", "layers.").replace("head.fc.", "classifier.head.")
        published["classifier." + name if name.startswith("norm.") else name] = value
    assert {"classifier.norm.weight", "layers.2.downsample.1.weight", "layers.3.blocks.0.op.A_logs"} <= set(published)
    other.load_state_dict(checkpoint_filter_fn({"model": published}, other))
    x = torch.randn(1, 3, 40, 50)
    torch.testing.assert_close(other(x), model(x))


def test_a_stage_averages_all_that_came_before():
    class Times(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return self.factor * x

    stage = AveragedStage([torch.nn.Sequential(Times(3.0), Times(5.0))], None, 1)
    x = torch.ones(1, 1, 1, 1)
    assert stage(x).item() == 15
    with torch.no_grad():
        for average, weights in zip(stage.averages, ([2.0], [1.0, 10.0], [100.0, 1.0, 0.5]), strict=True):
            average.weight.copy_(torch.tensor(weights))
    # h0 = 1, h1 = 3 (2 h0) = 6, h2 = 5 (h0 + 10 h1) = 305
    assert stage(x).item() == 100 + 6 + 152.5


def test_the_channel_mixer_keeps_to_a_token_and_sees_all_its_channels():
    torch.manual_seed(0)
    mixer = ChannelMixer(8, ratio=2.0, group=4)
    x = torch.randn(1, 2, 3, 8, requires_grad=True)
    mixer(x)[0, 1, 1, 0].backward()
    reached = x.grad.abs()
    assert (reached[0, 1, 1] > 0).all()
    assert reached.sum() == reached[0, 1, 1].sum()
    with pytest.raises(ConfigError, match="group is 5, expected a divisor of the 16 channels"):
        ChannelMixer(8, group=5)
