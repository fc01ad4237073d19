"""plstm_scan: matrix states that flow along the edges of a grid, a sequence or a directed acyclic graph."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..checks import FLOATS, check_device, check_dtype, check_shape, state_dtype
from ..cpu import refuses as cpu_refuses
from ..dispatch import Kernel, always, register_kernel, select
from ..library import define_op, gradients_of
from . import chunked, cpu
from .bands import bands
from .dag import plstm_scan_dag
from .graph import line_graph
from .line import plstm_scan_1d
from .reference import plstm_grid_reference
from .walk import Call, as_kernel, walked

__all__ = ["GridState", "line_graph", "plstm_scan_1d", "plstm_scan_2d", "plstm_scan_dag"]

_OP = "plstm_scan_2d"


class GridState(NamedTuple):
    """States of the edges across the ends of a grid's rows (B, X, H, K, V) and of its columns (B, Y, H, K, V).

    As a result, what leaves; as ``initial_state``, what enters.
    """

    rows: Tensor
    columns: Tensor


def plstm_scan_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor,
    *,
    directions: tuple[Literal["right", "left"], Literal["down", "up"]] = ("right", "down"),
    scale: float | None = None,
    initial_state: GridState | tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, GridState]:
    """Run pLSTM over a grid: matrix states on its edges flow right and down.

    Node (x, y) takes R, the state of the edge from its neighbour in the row, and C, that from its neighbour in the
    column, and has, with ``W = k v^T``,

    ``o = scale * (M_0 R + M_1 C + D W)^T q``, ``R' = T_00 R + T_01 C + S_0 W``, ``C' = T_10 R + T_11 C + S_1 W``

    where R' goes on to the next node of the row and C' to the next one of the column.

    Args:
        q: Queries, (B, X, Y, H, K) float32, float64, bfloat16 or float16: X rows of Y columns.
        k: Keys, (B, X, Y, H, K), q's dtype.
        v: Values, (B, X, Y, H, V), q's dtype.
        source: S, (B, X, Y, H, 2): into the edge along the row, and along the column. q's dtype or float32, as the
            gates below.
        transition: T, (B, X, Y, H, 2, 2), first where to, then where from. States stay bounded where the sums over all
            paths do: P-mode has ``T = [[a, a], [1 - a, 1 - a]]``, D-mode a triangle.
        mark: M, (B, X, Y, H, 2), where from.
        direct: D, (B, X, Y, H).
        directions: Whether states flow ``right`` or ``left`` along rows, ``down`` or ``up`` along columns.
        scale: Factor of the output; 1 / sqrt(K) if None.
        initial_state: States of the edges into the grid; zero if None.
        backend: Force ``triton``, ``cpu``, ``chunked`` or ``reference``; None chooses by device.

    Returns:
        o: (B, X, Y, H, V), q's dtype.
        final_state: The states of the edges out of the grid; float32 for half types, else q's dtype. A grid cut in two
            gives the same as the whole where the second part takes what leaves the first.

    Raises:
        TypeError: A dtype is not supported or does not fit q's.
        ValueError: Shapes, devices or directions do not fit, or the grid has no node.
        BackendError: A forced backend cannot serve the call.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3.

    Example:
        >>> import torch
        >>> from scanweave.kernels import plstm_scan_2d
        >>> one = torch.ones(1, 2, 2, 1, 1)
        >>> gates = torch.ones(1, 2, 2, 1, 2), torch.full((1, 2, 2, 1, 2, 2), 0.5), torch.ones(1, 2, 2, 1, 2)
        >>> o, state = plstm_scan_2d(one, one, one, *gates, torch.ones(1, 2, 2, 1))
        >>> o.view(2, 2).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """
    nodes = (q, k, v, source, transition, mark, direct)
    _check(*nodes)
    flips = _flips(directions)
    left, top = _edges(q, v, initial_state)
    factor = q.shape[4] ** -0.5 if scale is None else scale
    chosen = select(_OP, q, backend)
    if chosen == "reference":
        o, along, across = walked(plstm_grid_reference, Call(nodes, (left, top), flips, factor))
    else:
        o, along, across, _ = _op(*nodes, left, top, *flips, factor, False, chosen)
    return o, GridState(along, across)


def _flips(directions: tuple[str, str]) -> tuple[bool, bool]:
    """Return whether rows are walked upwards, and columns to the left."""
    if len(directions) != 2 or directions[0] not in ("right", "left") or directions[1] not in ("down", "up"):
        raise ValueError(f"{_OP}: directions is {directions!r}, expected right or left, then down or up")
    return directions[1] == "up", directions[0] == "left"


def _check(q: Tensor, k: Tensor, v: Tensor, source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> None:
    check_dtype(_OP, "q", q, FLOATS)
    if q.dim() != 5 or 0 in q.shape[1:3] or q.shape[4] == 0:
        raise ValueError(f"{_OP}: q has shape {tuple(q.shape)}, expected (B, X, Y, H, K) with X, Y and K at least 1")
    grid, gates = tuple(q.shape[:4]), (state_dtype(q.dtype), q.dtype)
    for name, x in (("k", k), ("v", v)):
        check_dtype(_OP, name, x, (q.dtype,))
    check_shape(_OP, "k", k, tuple(q.shape), "(B, X, Y, H, K)")
    check_shape(_OP, "v", v, (*grid, *v.shape[4:5]) if v.dim() == 5 else (*grid, 1), "(B, X, Y, H, V)")
    for name, x, inner, letters in (
        ("source", source, (2,), ", 2"),
        ("transition", transition, (2, 2), ", 2, 2"),
        ("mark", mark, (2,), ", 2"),
        ("direct", direct, (), ""),
    ):
        check_dtype(_OP, name, x, gates)
        check_shape(_OP, name, x, (*grid, *inner), f"(B, X, Y, H{letters})")
    check_device(_OP, q, {"k": k, "v": v, "source": source, "transition": transition, "mark": mark, "direct": direct})


def _edges(q: Tensor, v: Tensor, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return the checked states that enter, in the state's dtype."""
    if given is None:
        return None, None
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(f"{_OP}: initial_state is a {type(given).__name__}, expected the two tensors of GridState")
    batch, rows, columns, heads, keys = q.shape
    dtype = state_dtype(q.dtype)
    for field, part, count, letter in zip(GridState._fields, given, (rows, columns), "XY", strict=True):
        name = f"initial_state.{field}"
        check_dtype(_OP, name, part, (dtype, q.dtype))
        check_shape(_OP, name, part, (batch, count, heads, keys, v.shape[4]), f"(B, {letter}, H, K, V)")
        check_device(_OP, q, {name: part})
    return given[0].to(dtype), given[1].to(dtype)


def _fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, ...]:
    save, dtype = others[-2], state_dtype(q.dtype)
    batch, rows, columns, heads, keys = q.shape
    matrix = (heads, keys, v.shape[4])
    shapes = ((batch, rows), (batch, columns), (batch, bands(rows) if save and others[-1] != "chunked" else 0, columns))
    return v.new_empty(v.shape), *(v.new_empty((*shape, *matrix), dtype=dtype) for shape in shapes)


def _fake_backward(*saved: Any) -> tuple[Tensor, ...]:
    before = saved[12]
    entering = (before.new_empty(0 if x is None else x.shape) for x in saved[7:9])
    return *(x.new_empty(x.shape) for x in saved[:7]), *entering


def _gradients(*saved: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients by differentiating the reference form: for a gradient of the gradient."""
    plain = saved[9:12]

    def run(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        return walked(plstm_grid_reference, Call.of((*tensors, *plain)))

    return gradients_of(run, saved[:9], saved[13:])[:9]


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor source, Tensor transition, Tensor mark, Tensor direct, Tensor? left, "
    "Tensor? top, bool flip_rows, bool flip_columns, float scale, "
)
_op = define_op(
    _OP,
    schema=f"({_ARGUMENTS}bool save, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    backward_schema=(
        f"({_ARGUMENTS}Tensor before, Tensor? do, Tensor? drows, Tensor? dcolumns, str backend) -> "
        f"({', '.join(['Tensor'] * 9)})"
    ),
    fake=_fake,
    fake_backward=_fake_backward,
    saved=lambda arguments, outputs: (*arguments[:12], outputs[3]),
    differentiable=tuple(range(9)),
    batched=tuple(range(9)),
    twice=_gradients,
    extras=1,
)
register_kernel(_OP, "reference", Kernel(plstm_grid_reference, None, always))
register_kernel(_OP, "chunked", as_kernel(chunked, always))
register_kernel(_OP, "cpu", as_kernel(cpu, cpu_refuses))
if find_spec("triton"):
    from . import triton

    register_kernel(_OP, "triton", as_kernel(triton, triton.refuses))
