"""pLSTM on grids: matrix states that flow over an image along rows and columns, from all four corners."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...kernels import plstm_scan_2d
from ..errors import ConfigError
from ..gates import HeadGates
from ..heads import HeadNorm, count_heads, split_heads
from ..layouts import GridMixer
from ..registry import register_mixer

Mode = Literal["P", "D"]
DIRECTIONS: tuple[tuple[Literal["right", "left"], Literal["down", "up"]], ...] = (
    ("right", "down"),
    ("left", "down"),
    ("right", "up"),
    ("left", "up"),
)


@register_mixer("plstm2d")
class PLSTM2D(GridMixer):
    """The pLSTM layer of images: four scans of the grid, one from each corner.

    ``q, k, v = W_q x, W_k x, W_v x``; each direction pair d has gates of its own, shares in (0, 1) read from x;
    ``y = W_o norm(sum_d plstm_scan_2d(q, k, v, S_d, T_d, M_d, D))``, with D in the first alone, and a norm over each
    head's own features. From the left and from above, to the right and down:

    ``P: T = gamma [[alpha, alpha], [1 - alpha, 1 - alpha]], S = s (alpha, 1 - alpha)``: what a node has flows on in the
    direction that alpha says, straight and far; the shares over all paths sum to at most 1.

    ``D: T = [[a, 0], [c, b]], S = (s_0, s_1)``: right first, then down, one path from a node to any other: it spreads.

    Args:
        dim: Features of the input and of the output.
        mode: ``P`` propagates, ``D`` distributes.
        head_dim: Features of one head; None is the largest divisor of dim that is at most 64.
        join: ``sum`` runs every head from all corners, as above; ``heads`` runs a quarter of the heads from each, at a
            quarter of the cost: then a head knows which side it hears from.

    Raises:
        ConfigError: The mode or the join is unknown, head_dim does not divide dim, or ``heads`` has no multiple of four
            of them.

    Source:
        Pöppel et al., pLSTM: parallelizable linear source transition mark networks (2025), sections 3 and 4.
    """

    def __init__(
        self, dim: int, mode: Mode = "P", head_dim: int | None = None, join: Literal["sum", "heads"] = "sum"
    ) -> None:
        super().__init__(dim)
        if mode not in ("P", "D"):
            raise ConfigError(f"plstm2d: mode is {mode!r}, expected 'P' or 'D'")
        if join not in ("sum", "heads"):
            raise ConfigError(f"plstm2d: join is {join!r}, expected 'sum' or 'heads'")
        self.mode, self.join, self.heads = mode, join, count_heads("plstm2d", dim, head_dim)
        if join == "heads" and self.heads % len(DIRECTIONS):
            raise ConfigError(f"plstm2d: join='heads' with {self.heads} heads, expected a multiple of four")
        self.each = self.heads if join == "sum" else self.heads // len(DIRECTIONS)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.gates = nn.ModuleList(HeadGates(dim, self._biases()) for _ in DIRECTIONS)
        self.direct = HeadGates(dim, {"direct": torch.zeros(self.heads)})
        self.norm = HeadNorm(self.heads, dim // self.heads)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def _biases(self) -> dict[str, Tensor]:
        """Return the gates before training: what stays, long for some heads; half of what comes and is read."""
        long, half = torch.linspace(2, 5, self.each), torch.zeros(self.each)
        read = {"mark_left": half, "mark_above": half}
        if self.mode == "P":
            # Heads look in directions between flat and steep.
            return {"share": torch.linspace(-2, 2, self.each), "decay": long, "source": half, **read}
        return {
            "right": long, "down": long, "turn": torch.zeros(self.each), "source_right": half, "source_down": half,
            **read,
        }  # fmt: skip

    def _flow(self, g: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return source (..., 2) and transition (..., 2, 2)."""
        if self.mode == "P":
            share = torch.stack([g["share"], 1 - g["share"]], -1)
            onward = share * g["decay"].unsqueeze(-1)
            return share * g["source"].unsqueeze(-1), onward.unsqueeze(-1).expand(*onward.shape, 2)
        nothing = torch.zeros_like(g["turn"])
        transition = torch.stack([g["right"], nothing, g["turn"], g["down"]], -1).unflatten(-1, (2, 2))
        return torch.stack([g["source_right"], g["source_down"]], -1), transition

    def mix(self, x: Tensor) -> Tensor:
        """Scan x (B, H, W, dim) from each corner."""
        if x.dim() != 4:
            raise ValueError(f"plstm2d: x has shape {tuple(x.shape)}, expected (batch, height, width, {self.dim})")
        q, k, v = (split_heads(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        direct = self.direct(x)["direct"]
        found = []
        for i, (directions, gates) in enumerate(zip(DIRECTIONS, self.gates, strict=True)):
            g = gates(x)
            mark = torch.stack([g["mark_left"], g["mark_above"]], -1)
            source, transition = self._flow(g)
            if self.join == "sum":
                own = direct if i == 0 else torch.zeros_like(direct)  # what a node tells itself counts once
                o, _ = plstm_scan_2d(q, k, v, source, transition, mark, own, directions=directions)
            else:
                qi, ki, vi, own = (t.narrow(3, i * self.each, self.each) for t in (q, k, v, direct))
                o, _ = plstm_scan_2d(qi, ki, vi, source, transition, mark, own, directions=directions)
            found.append(o)
        joined = torch.stack(found).sum(0) if self.join == "sum" else torch.cat(found, 3)
        y: Tensor = self.o_proj(self.norm(joined).flatten(-2))
        return y
