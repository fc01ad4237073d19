"""The matrix-state Triton kernels where the contract's rows are too slow for the interpreter: over several chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scanweave.kernels import delta_rule, dplr_scan, gated_linear_attention

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, cotangents

pytest.importorskip("triton")

DECAYS = torch.tensor([0.0, -1e-30, -1e-3, -0.7, -30.0, -200.0, -torch.inf])


def _draw(length: int, *shape: int) -> Tensor:
    return torch.randn(1, length, *shape)


def _decays(*shape: int) -> Tensor:
    return DECAYS[torch.randint(len(DECAYS), shape)]


def _rows() -> dict[str, Tensor]:
    return {"q": _draw(67, 1, 3), "k": _draw(67, 1, 3), "v": _draw(67, 1, 2), "log_decay": _decays(1, 67, 1, 3)}


def _bonus() -> dict[str, Tensor]:
    return {**_rows(), "bonus": torch.randn(1, 3)}


def _product() -> dict[str, Tensor]:
    k, beta = F.normalize(_draw(35, 2, 1, 3), dim=-1), torch.randint(3, (1, 35, 2, 1)).float()
    return {"q": _draw(35, 1, 3), "k": k, "v": _draw(35, 2, 1, 2), "beta": beta, "log_decay": _decays(1, 35, 1)}


def _goose() -> dict[str, Tensor]:
    removed = F.normalize(_draw(35, 1, 3), dim=-1)
    short = {n: t[:, :35] for n, t in _rows().items()}
    return {**short, "a": -removed, "b": removed * torch.rand(1, 35, 1, 3)}


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("op", "draw"),
    [(gated_linear_attention, _rows), (gated_linear_attention, _bonus), (delta_rule, _product), (dplr_scan, _goose)],
    ids=["rows", "bonus", "product", "dplr"],
)
def test_chunks_agree_with_the_reference(
    op: Callable[..., tuple[Tensor, Tensor]], draw: Callable[[], dict[str, Tensor]], restarts: bool
) -> None:
    torch.manual_seed(5)
    drawn = {**draw(), "initial_state": torch.randn(1, 1, 3, 2)}
    length = drawn["q"].shape[1]
    reset = torch.rand(1, length) < 0.1 if restarts else None
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(backend: str, dtype: torch.dtype) -> list[tuple[str, Tensor]]:
        leaves: dict[str, Any] = {n: t.to(device, dtype).requires_grad_() for n, t in drawn.items()}
        starts = None if reset is None else reset.to(device)
        o, final = op(**leaves, reset=starts, backend=backend)
        weights = [w.to(device) for w in cotangents(o.cpu(), final.cpu())]
        grads = torch.autograd.grad((o, final), list(leaves.values()), weights)
        return [("o", o.detach()), ("final_state", final.detach()), *zip(leaves, grads, strict=True)]

    for i, ((name, found), (_, wanted)) in enumerate(
        zip(run("triton", torch.float32), run("reference", torch.float64), strict=True)
    ):
        assert_close(found, wanted, (FORWARD_BOUND if i < 2 else BACKWARD_BOUND)[torch.float32], name)
