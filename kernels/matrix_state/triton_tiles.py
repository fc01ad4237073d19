"""What the Triton kernels of the matrix-state recurrences have in common.

They all serve one recurrence over steps, ``n`` of which make a token (B, L, H, ...):
``S <- Diag(exp(g)) S``, ``u = r + S^T x``, ``S <- S + y u^T``, and ``o = scale S^T q`` after a token's last step.
``g`` acts at a token's first step; ``x`` and ``q`` may read the state as it was before the step (a lag of 1).

Time is cut into chunks. No exponent is ever above 0, and none is a difference of running sums: decays between two steps
are summed over these steps alone, so that neither overflow nor a strong decay elsewhere in the chunk costs digits.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers in a tile of a chunk's keys, and in the state that a program holds


def refuses(tensor: Tensor) -> str | None:
    """Return why the Triton kernels cannot serve ``tensor``, or None."""
    if tensor.device.type != "cuda" and (tensor.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1"):
        return "it serves tensors on a GPU (on the CPU only in Triton's interpreter, TRITON_INTERPRET=1)"
    if tensor.dtype == torch.float64:
        return "it computes in float32"
    return None


# float32 products from three of tensor cores' own; without these cores' help a product of tiles spills its operands.
EXACT = "ieee" if torch.version.hip else "tf32x3"


@triton.jit
def place(chunks, heads, PARTS: tl.constexpr):
    """Return a program's batch, head, chunk, part of the chunk, and the chunk's number among all heads' chunks."""
    program = tl.program_id(0)
    part = program % PARTS
    number = (program // PARTS).to(tl.int64)
    head = number // chunks
    return head // heads, head % heads, number % chunks, part, number


@triton.jit
def present(faults, b, h, t, length, heads):
    """Return which steps exist and hold numbers."""
    mask = (t >= 0) & (t < length)
    if faults is not None:
        mask = mask & (tl.load(faults + (b * length + t) * heads + h, mask=mask, other=1) == 0)
    return mask


@triton.jit
def rows(x, batch, step, head, b, h, t, mask, column, width, PER: tl.constexpr):
    """Return some steps' rows of a sequence, (T, columns); where PER steps make a token only the last one has a row."""
    at = t
    if PER > 1:
        mask = mask & (t % PER == PER - 1)
        at = t // PER
    where = b * batch + h * head + at[:, None] * step + column[None, :]
    return tl.load(x + where, mask=mask[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def put_rows(x, tile, b, h, t, mask, column, length, heads, width, PER: tl.constexpr):
    """Store rows to a contiguous (B, L, H, columns)."""
    at = t
    if PER > 1:
        mask = mask & (t % PER == PER - 1)
        at = t // PER
    where = ((b * (length // PER) + at) * heads + h)[:, None] * width + column[None, :]
    tl.store(x + where, tile, mask=mask[:, None] & (column < width)[None, :])


@triton.jit
def decays(g, batch, step, head, b, h, t, mask, column, width, PER: tl.constexpr, VECTOR: tl.constexpr):
    """Return the log decays at some steps: (T, columns) where each row of the state has its own, else (T,)."""
    mask = mask & (t % PER == 0)
    at = b * batch + h * head + (t // PER) * step
    if VECTOR:
        wide = mask[:, None] & (column < width)[None, :]
        return tl.load(g + at[:, None] + column[None, :], mask=wide, other=0.0).to(tl.float32)
    elif g is None:
        return tl.zeros(t.shape, dtype=tl.float32)
    else:
        return tl.load(g + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def column_or_tile(x, VECTOR: tl.constexpr):
    """Return x so that it multiplies a tile of rows."""
    if VECTOR:
        return x
    else:
        return x[:, None]


@triton.jit
def from_start(g, batch, step, head, b, h, t, first, faults, length, heads, column, width,
               PER: tl.constexpr, LAG: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Return exp of the decay from before step ``first`` to each step t that reads."""
    mask = present(faults, b, h, t - LAG, length, heads) & (t - LAG >= first)
    tile = decays(g, batch, step, head, b, h, t - LAG, mask, column, width, PER, VECTOR)
    return column_or_tile(tl.exp(tl.cumsum(tile, 0)), VECTOR)


@triton.jit
def to_end(g, batch, step, head, b, h, t, last, faults, length, heads, column, width,
           PER: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Return exp of the decay from each step t that writes to after step ``last``."""
    mask = present(faults, b, h, t + 1, length, heads) & (t + 1 <= last)
    tile = decays(g, batch, step, head, b, h, t + 1, mask, column, width, PER, VECTOR)
    return column_or_tile(tl.exp(tl.cumsum(tile, 0, reverse=True)), VECTOR)


@triton.jit
def between(g, batch, step, head, b, h, t, first, faults, length, heads, i, PER: tl.constexpr, LAG: tl.constexpr):
    """Return exp of the scalar decay from each writing step (axis 1) to each reading step (axis 0) of a chunk."""
    mask = present(faults, b, h, t - LAG, length, heads) & (t - LAG >= first)
    tile = decays(g, batch, step, head, b, h, t - LAG, mask, i, 1, PER, False)
    return tl.exp(tl.cumsum(tl.where(i[:, None] - LAG > i[None, :], tile[:, None], 0.0), 0))


@triton.jit
def between_rows(g, batch, step, head, b, h, t, first, faults, length, heads, i, column, width,
                 PER: tl.constexpr, LAG: tl.constexpr):  # fmt: skip
    """Return the same of a decay per row of the state, (reading step, writing step, column)."""
    mask = present(faults, b, h, t - LAG, length, heads) & (t - LAG >= first)
    tile = decays(g, batch, step, head, b, h, t - LAG, mask, column, width, PER, True)
    later = i[:, None, None] - LAG > i[None, :, None]
    return tl.exp(tl.cumsum(tl.where(later, tile[:, None, :], 0.0), 0))


@triton.jit
def total(g, batch, step, head, b, h, t, faults, length, heads, column, width,
          PER: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Return exp of the decay over all steps t, (columns,) or a scalar."""
    mask = present(faults, b, h, t, length, heads)
    return tl.exp(tl.sum(decays(g, batch, step, head, b, h, t, mask, column, width, PER, VECTOR), 0))


@triton.jit
def span(g, batch, step, head, b, h, first, end, faults, length, heads, column, width,
         PER: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Return exp of the decay from step ``first`` to the one before ``end``, at most C, (columns,)."""
    t = first + tl.arange(0, C)
    mask = present(faults, b, h, t, length, heads) & (t < end)
    return tl.exp(tl.sum(decays(g, batch, step, head, b, h, t, mask, column, width, PER, True), 0))


@triton.jit
def segment(segments, b, t, length, PER: tl.constexpr):
    """Return the number of the sequence that each step belongs to; a step past the end belongs to the last one."""
    t = tl.minimum(t, length - 1)
    return tl.load(segments + b * (length // PER) + t // PER, mask=t >= 0, other=0)


@triton.jit
def charge(e, tile, b, h, t, mask, column, length, heads, width, VECTOR: tl.constexpr):
    """Add to what decays are charged with: (B, L n, H, K), or its sum over the keys (B, L n, H)."""
    at = (b * length + t) * heads + h
    if VECTOR:
        at = e + at[:, None] * width + column[None, :]
        wide = mask[:, None] & (column < width)[None, :]
        tl.store(at, tl.load(at, mask=wide, other=0.0) + tile, mask=wide)
    else:
        tl.store(e + at, tl.load(e + at, mask=mask, other=0.0) + tl.sum(tile, 1), mask=mask)


@triton.jit
def charges(e, each, t, mask, column, width, VECTOR: tl.constexpr):
    """Return what decays are charged with at some steps, ``each`` numbers apart."""
    if VECTOR:
        wide = mask[:, None] & (column < width)[None, :]
        return tl.load(e + t[:, None] * each + column[None, :], mask=wide, other=0.0)
    else:
        return tl.load(e + t * each, mask=mask, other=0.0)


@dataclass(frozen=True)
class Recurrence:
    """The recurrence's arguments, and how its kernels are cut.

    Args:
        q: What reads the state, (B, L, H, K).
        y: Where a step writes, (B, L n, H, K).
        r: What a step writes less what it reads, (B, L n, H, V).
        g: Log decays, (B, L, H), (B, L, H, K), or None for none.
        x: What a step reads, (B, L n, H, K), or None for nothing.
        bonus: Weight of the step's own y where q reads with a lag, (H, K) or None.
        initial: (B, H, K, V) float32 or None.
        reset: (B, L) bool or None.
        scale: Factor of the output.
        lag_q: 1 where q reads the state before its step, else 0.
        lag_x: The same of x; with 0 it reads the decayed state.
    """

    q: Tensor
    y: Tensor
    r: Tensor
    g: Tensor | None
    x: Tensor | None = None
    bonus: Tensor | None = None
    initial: Tensor | None = None
    reset: Tensor | None = None
    scale: float = 1.0
    lag_q: int = 0
    lag_x: int = 0

    def prepared(self) -> Recurrence:
        """Return the same with every tensor as the kernels take it."""
        changed: dict[str, Any] = {name: _side_by_side(getattr(self, name)) for name in ("q", "y", "r", "g", "x")}
        for name in ("bonus", "initial"):
            whole = getattr(self, name)
            changed[name] = None if whole is None else whole.contiguous()
        # A running number of the sequence serves the kernels better than marks at their starts.
        reset = None if self.reset is None else self.reset.cumsum(1, dtype=torch.int32)
        return replace(self, **changed, reset=reset)

    @property
    def per_token(self) -> int:
        """How many steps make a token."""
        return self.y.shape[1] // self.q.shape[1]

    @property
    def vector(self) -> bool:
        """Whether each row of the state has its own decay."""
        return self.g is not None and self.g.dim() == 4

    @property
    def block_k(self) -> int:
        """The keys' width in registers."""
        return max(16, triton.next_power_of_2(self.q.shape[3]))

    @property
    def block_v(self) -> int:
        """How many of the state's columns a program holds."""
        return max(16, min(64, triton.next_power_of_2(self.r.shape[3]), TILE // self.block_k))

    @property
    def chunk(self) -> int:
        """Steps in a chunk."""
        return max(16, min(64, TILE // self.block_k))

    @property
    def chunks(self) -> int:
        """Number of chunks of each head."""
        return triton.cdiv(self.y.shape[1], self.chunk)

    @property
    def heads(self) -> int:
        """Heads of the whole batch."""
        return self.q.shape[0] * self.q.shape[2]

    @property
    def column_blocks(self) -> int:
        """Number of programs that share the state's columns."""
        return triton.cdiv(self.r.shape[3], self.block_v)

    def options(self, blocks: bool = False, **further: Any) -> dict[str, Any]:
        """Return what every kernel is compiled for, and ``further``; ``blocks``: it holds a block, not a chunk."""
        return {
            "PER": self.per_token,
            "VECTOR": self.vector,
            "C": self.chunk,
            "BLOCK_K": self.block_k,
            "PRECISION": EXACT if self.q.dtype == torch.float32 else "tf32",
            "num_warps": 4 if blocks and self.block_k <= 64 else 8,
            "num_stages": 1,
            **further,
        }

    def fresh(self, *shape: int, zero: bool = False) -> Tensor:
        """Return a float32 tensor on the arguments' device."""
        return (self.q.new_zeros if zero else self.q.new_empty)(shape, dtype=torch.float32)

    def per_chunk(self, *shape: int) -> Tensor:
        """Return a float32 tensor with a block for each chunk of each head."""
        return self.fresh(self.heads, self.chunks, *shape)

    def faults(self) -> Tensor | None:
        """Return where a step writes or reads what is no number, (B, L n, H), or None.

        Products with zero would carry NaN over a reset inside a chunk, so these steps are left out and what they reach
        is marked. Where there is no reset NaN takes its own course.
        """
        if self.reset is None:
            return None
        found = None
        for t in (self.y, self.r, self.x):
            if t is not None:
                bad = torch.isfinite(t).all(-1).logical_not_()
                found = bad if found is None else found.logical_or_(bad)
        return found


def _side_by_side(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.dim() == 3 or x.stride(-1) == 1 else x.contiguous()


def nothing_kept(final: Tensor, initial_state: Tensor | None, save: bool) -> Tensor:
    """Return what stands for the states before the chunks: the first alone, from which backward starts again."""
    if not save:
        return final.new_empty((final.shape[0], 0, *final.shape[1:]))
    first = (
        final.new_zeros(final.shape)
        if initial_state is None
        else initial_state.clone(memory_format=torch.contiguous_format)
    )
    return first.unsqueeze(1)


def sequence(x: Tensor | None) -> tuple[Tensor | None, int, int, int]:
    """Return a sequence and its strides over batch, time and heads."""
    return (None, 0, 0, 0) if x is None else (x, x.stride(0), x.stride(1), x.stride(2))


def on_device(tensor: Tensor) -> AbstractContextManager[None]:
    """Make the tensor's GPU the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
