"""Programs that programs without this package read: PyTorch's operators alone, and the same values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scanweave.kernels import delta_rule, gated_linear_attention, mlstm_scan, selective_scan
from scanweave.kernels.portable import export_in_plain_operators


class Delta(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return delta_rule(x, nn.functional.normalize(x, dim=-1), x, x[..., 0].sigmoid())[0]


class Mlstm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mlstm_scan(x, x, x, x[..., 0], x[..., 1])[0]


@pytest.mark.parametrize("model", [Delta(), Mlstm()], ids=["delta_rule", "mlstm_scan"])
def test_a_program_has_none_of_our_ops_and_the_same_values(model: nn.Module) -> None:
    x = torch.randn(2, 5, 2, 4)
    program = export_in_plain_operators(model, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any(target.startswith("scanweave") for target in targets)
    # What ONNX's exporter does not know.
    assert not targets & {"aten.diagonal_scatter.default", "aten.cummax.default"}
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


class Selective(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return selective_scan(x, x, -torch.ones(4, 3), x[..., :3], x[..., :3])[0]


class VectorDecay(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.unsqueeze(2)
        return gated_linear_attention(heads, heads, heads, nn.functional.logsigmoid(heads))[0]


@pytest.mark.parametrize("model", [Selective(), VectorDecay()], ids=["selective_scan", "gated_linear_attention"])
def test_a_program_of_any_batch_takes_any_batch(model: nn.Module) -> None:
    program = export_in_plain_operators(model, (torch.randn(2, 3, 4),), ({0: torch.export.Dim("batch", min=1)},))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 4)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
