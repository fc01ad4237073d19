"""newton_scan in PyTorch ops: Newton's method for the states of all steps at once, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import state_dtype
from ..dispatch import kernel, select
from ..linear_scan.chunked import scan
from .cells import Cell, find_cell


class ConvergenceError(RuntimeError):
    """Newton's iterations reached their cap before the states satisfied the recurrence."""


def _block_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices (..., S, S, C) with (..., S, K, C), for each channel."""
    return (a.unsqueeze(-2) * b.unsqueeze(-4)).sum(-3)


def block_scan(a: Tensor, b: Tensor, reset: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """Return ``h_t = A_t h_{t-1} + b_t`` for all t, from zero, each channel with its own matrices.

    Args:
        a: Matrices (B, L, S, S, C).
        b: Inputs (B, L, S, C).
        reset: (B, L) bool; where True ``h_t = b_t``.
        reverse: Run from the last step to the first: ``h_t = A_t h_{t+1} + b_t``.

    Returns:
        All states (B, L, S, C).
    """
    if a.shape[-2] == 1:
        # What serves diagonal recurrences here; it refuses decays that are not finite, but a NaN is in b as well.
        flat = torch.nan_to_num(a[:, :, 0, 0], posinf=0.0, neginf=0.0).contiguous(), b[:, :, 0].contiguous()
        return kernel("linear_scan", select("linear_scan", b)).forward(*flat, None, reset, reverse)[0].unsqueeze(2)
    starts = None if reset is None else reset[..., None, None, None]
    if reverse:
        a, b, starts = a.flip(1), b.flip(1), None if starts is None else starts.flip(1)
    h = scan(a, b.unsqueeze(3), starts, _block_product).squeeze(3)
    return h.flip(1) if reverse else h


def _gates(wx: Tensor, bias: Tensor | None) -> Tensor:
    dtype = state_dtype(wx.dtype)
    return wx.to(dtype) if bias is None else wx.to(dtype) + bias.to(dtype)


def _before(states: Tensor, initial: Tensor, reset: Tensor | None) -> tuple[Tensor, ...]:
    """Return the state before each step."""
    before = torch.cat([initial.unsqueeze(1), states[:, :-1]], 1)
    if reset is not None:
        before = before.masked_fill(reset[..., None, None], 0)
    return before.unbind(2)


def _largest(x: Tensor, reset: Tensor | None) -> Tensor:
    """Return the largest entry of each sequence of a packed batch, (B, L or 1, 1, C) from (B, L, 1, C)."""
    if reset is None:
        return x.amax(1, keepdim=True)
    sequence = reset.cumsum(1)[..., None, None].expand(x.shape)
    found = x.new_zeros((x.shape[0], x.shape[1] + 1, *x.shape[2:])).scatter_reduce(1, sequence, x, "amax")
    return found.gather(1, sequence)


def solve(
    cell: Cell, a: Tensor, r: Tensor, initial: Tensor, reset: Tensor | None, tol: float, max_iterations: int
) -> tuple[Tensor, int, float]:
    """Return the states (B, L, S, C) that satisfy the recurrence, the iterations taken and the residual.

    Iterates are held within the range of the states, where ``f`` maps it into itself. The first k steps are right
    after k iterations, whatever J; so nothing is lost where a step of Newton's would leave that range. A channel of a
    sequence that satisfies its equations rests: its states do not depend on what else is in the batch.

    Raises:
        ConvergenceError: The largest ``|h_t - f(h_{t-1}, x_t)|`` is still above ``tol`` after ``max_iterations``.
    """
    fresh = tuple(a.new_zeros(()).expand(a[:, :, 0].shape) for _ in cell.states)
    states = torch.stack(cell.step(a, r, fresh), 2)
    bound = initial.abs().nan_to_num(nan=0.0).amax(1).clamp(min=1)[:, None, None]
    for iteration in range(max_iterations + 1):
        step = cell.expand(a, r, _before(states, initial, reset))
        images = torch.stack(step.state, 2)
        short = images - states
        # What is NaN by now is so because an input is: nothing better will come.
        residual = _largest(short.abs().nan_to_num(nan=0.0).amax(2, keepdim=True) / bound, reset)
        unsolved = residual > tol
        worst = float(residual.max()) if residual.numel() else 0.0
        if worst <= tol:
            return states, iteration, worst
        if iteration < max_iterations:
            moved = (states + block_scan(step.jacobian, short, reset)).clamp(-bound, bound)
            states = torch.where(unsolved, torch.where(moved.isnan(), images, moved), states)
    raise ConvergenceError(
        f"newton_scan: the {cell.name} cell's states are off by {worst:.3g} after {max_iterations} iterations, "
        f"expected at most {tol:.3g}; raise max_iterations (as many as there are steps always suffice) or run "
        "the recurrence step by step with backend='cpu' or 'reference'"
    )


def forward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    tol: float,
    max_iterations: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the final state and, where ``save``, all states (B, L, S, C)."""
    a = _gates(wx, bias)
    states, _, _ = solve(find_cell(cell), a, r.to(a.dtype), initial, reset, tol, max_iterations)
    y, final = states[:, :, 0].to(wx.dtype, copy=True), states[:, -1].clone()
    return y.contiguous(), final, (states if save else states[:, :0]).contiguous()


def backward(
    wx: Tensor,
    r: Tensor,
    bias: Tensor | None,
    initial: Tensor,
    reset: Tensor | None,
    cell: str,
    states: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of wx, r, bias and the initial state by one reverse scan with J transposed."""
    a = _gates(wx, bias)
    step = find_cell(cell).expand(a, r.to(a.dtype), _before(states, initial, reset))
    into = torch.zeros_like(states)
    if dy is not None:
        into[:, :, 0] = dy
    if dfinal is not None:
        into[:, -1] += dfinal
    back = step.jacobian.transpose(2, 3)
    # The last step has none after it.
    after = torch.cat([back[:, 1:], torch.zeros_like(back[:, :1])], 1)
    after_starts = None if reset is None else torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1)
    g = block_scan(after, into, after_starts, reverse=True)
    da = step.pull(g.unbind(2))
    dr = torch.stack([(da[gate] * read).sum((0, 1)) for gate, read in step.reads])
    dwx = torch.stack(da, 2)
    dinitial = _block_product(back[:, 0], g[:, 0].unsqueeze(2)).squeeze(2)
    if reset is not None:
        dinitial = dinitial.masked_fill(reset[:, :1, None], 0)
    dbias = r.new_empty(0) if bias is None else dwx.sum((0, 1)).to(bias.dtype)
    return dwx.to(wx.dtype), dr.to(r.dtype), dbias, dinitial
