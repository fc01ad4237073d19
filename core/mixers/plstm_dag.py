"""pLSTM over graphs: matrix states that flow along the edges of any directed acyclic graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import line_graph, plstm_scan_dag
from ..errors import ConfigError
from ..gates import HeadGates
from ..heads import HeadNorm, count_heads, split_heads
from ..layouts import GraphMixer
from ..parameters import widen
from ..registry import register_mixer
from .plstm2d import Mode


@register_mixer("plstm_dag")
class PLSTMDag(GraphMixer):
    """The pLSTM layer of directed acyclic graphs.

    Gates of an edge e from node n to node m: ``S_e = s_n w_e``, ``M_e = mark_m``. Of an edge e' into n and e out of n:

    ``P: T = gamma_n w_e`` with ``w = softmax`` over the edges out of n: what comes in is divided among them, so that
    the shares over all paths sum to at most 1.

    ``D: T = gamma_n / (edges into n)``, ``w = sigmoid``: what goes out on any edge is a mean of what came in.

    w_e is read from the nodes at both of its ends, ``a^T x_n + b^T x_m``; then ``W_o norm(plstm_scan_dag(...))``.

    Args:
        dim: Features of the input and of the output.
        mode: ``P`` propagates, ``D`` distributes.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.

    Raises:
        ConfigError: The mode is unknown, or head_dim does not divide dim.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), section 3; how gates are
        made from nodes of any degree is this library's.
    """

    def __init__(self, dim: int, mode: Mode = "P", head_dim: int | None = None) -> None:
        super().__init__(dim)
        if mode not in ("P", "D"):
            raise ConfigError(f"plstm_dag: mode is {mode!r}, expected 'P' or 'D'")
        self.mode, self.heads = mode, count_heads("plstm_dag", dim, head_dim)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        half = torch.zeros(self.heads)
        self.gates = HeadGates(
            dim, {"decay": torch.linspace(2, 5, self.heads), "source": half, "mark": half, "direct": half}
        )
        self.ends = nn.Linear(dim, 2 * self.heads, bias=False)
        self.norm = HeadNorm(self.heads, dim // self.heads)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def mix(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Scan the nodes x (N, dim) along the edges."""
        start, end = edge_index
        q, k, v = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        g, (tail, head) = self.gates(x), widen(self.ends(x)).chunk(2, -1)
        share = self._shares(tail[start] + head[end], start, len(x))
        _, out = line_graph(edge_index)
        onward = g["decay"][start[out]]
        if self.mode == "P":
            onward = onward * share[out]
        else:
            onward = onward / torch.bincount(end, minlength=len(x)).clamp(min=1)[start[out]].unsqueeze(-1)
        source, mark = g["source"][start] * share, g["mark"][end]
        o, _ = plstm_scan_dag(q, k, v, source, onward, mark, g["direct"], edge_index)
        y: Tensor = self.o_proj(self.norm(o).flatten(-2))
        return y

    def _shares(self, scores: Tensor, start: Tensor, nodes: int) -> Tensor:
        """Return w (E, heads): in P mode the edges out of a node sum to 1."""
        if self.mode == "D":
            return torch.sigmoid(scores)
        index = start.unsqueeze(-1).expand_as(scores)
        most = scores.new_full((nodes, self.heads), -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
        weight = torch.exp(scores - most[start])
        return weight / weight.new_zeros(nodes, self.heads).index_add(0, start, weight)[start]
