"""Programs that programs without this package read: PyTorch's operators alone, and the same values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scanweave.kernels import delta_rule, mlstm_scan
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
