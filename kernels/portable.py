"""Exported programs without this package's ops: for programs that know PyTorch's operators alone, such as ONNX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import dispatch


def export_in_plain_operators(
    model: torch.nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """Export a model with each op of this package in its chunked form, made of PyTorch's own operators.

    Args:
        model: The model, in evaluation.
        inputs: Example inputs.
        dynamic_shapes: As for ``torch.export.export``.

    Returns:
        A program that needs no import of this package.
    """
    with torch.no_grad():
        graph = torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes).module()
        for node in graph.graph.nodes:  # type: ignore[union-attr]
            if getattr(node.target, "namespace", "") == "scanweave":
                node.target = _chunked(node.target.__name__.split(".")[0])
        graph.recompile()  # type: ignore[operator]
        plain = torch.export.export(graph, inputs, dynamic_shapes=dynamic_shapes)
        return plain.run_decompositions(_WITHOUT_ONNX)


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    if offset or x.shape[dim1] != x.shape[dim2]:
        return NotImplemented
    matrices = x.movedim((dim1, dim2), (-2, -1))
    on = torch.eye(x.shape[dim1], dtype=torch.bool, device=x.device)
    return torch.where(on, source.unsqueeze(-1), matrices).movedim((-2, -1), (dim1, dim2))


def _cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    rows = x.movedim(dim, -1)
    later = torch.ones(2 * rows.shape[-1:], dtype=torch.bool, device=x.device).triu(1)
    values, indices = rows.unsqueeze(-2).masked_fill(later, -torch.inf).max(-1)
    return values.movedim(-1, dim), indices.movedim(-1, dim)


def _chunked(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return dispatch.kernel(name, "chunked").forward(*args[:-1])

    call.__name__ = f"{name}_chunked"
    return call


# Operators of the chunked forms that ONNX's exporter does not know.
_WITHOUT_ONNX: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.diagonal_scatter.default: _diagonal_scatter,
    torch.ops.aten.cummax.default: _cummax,
}
