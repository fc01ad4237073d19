"""Draws inputs of the matrix-state ops as their mixers make them, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
#: Batch, length, heads and the width of keys and values.
Shape = tuple[int, int, int, int]

MINI_BATCH = 16


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw from the normal distribution."""
    return torch.randn(*shape, generator=generator)


def qkv(g: torch.Generator, shape: Shape) -> Tensors:
    """Return q, k and v."""
    batch, length, heads, width = shape
    return {name: normal(g, batch, length, heads, width) for name in "qkv"}


def constant(g: torch.Generator, shape: Shape) -> Tensors:
    """Return q, k, v and RetNet's decays."""
    _, _, heads, _ = shape
    return {**qkv(g, shape), "log_decay": torch.log1p(-(2.0 ** -torch.arange(5, 5 + heads)))}


def per_head(g: torch.Generator, shape: Shape) -> Tensors:
    """Return q, k, v and one decay per head and step."""
    batch, length, heads, _ = shape
    return {**qkv(g, shape), "log_decay": F.logsigmoid(normal(g, batch, length, heads))}


def per_row(g: torch.Generator, shape: Shape) -> Tensors:
    """Return q, k, v and one decay per row of the state and step."""
    batch, length, heads, width = shape
    return {**qkv(g, shape), "log_decay": F.logsigmoid(normal(g, batch, length, heads, width))}


def with_bonus(g: torch.Generator, shape: Shape) -> Tensors:
    """Return RWKV-6's tensors: decays per row and a bonus."""
    _, _, heads, width = shape
    return {**per_row(g, shape), "bonus": normal(g, heads, width)}


def gates(g: torch.Generator, shape: Shape) -> Tensors:
    """Return the mLSTM's tensors."""
    batch, length, heads, _ = shape
    drawn = qkv(g, shape)
    # Keys and queries of one sign: where a normaliser cancels, no two forms agree to many digits.
    return {
        **{name: x.abs() if name in "qk" else x for name, x in drawn.items()},
        "input_gate": normal(g, batch, length, heads),
        "forget_gate": 2 + normal(g, batch, length, heads),
    }


def delta(g: torch.Generator, shape: Shape) -> Tensors:
    """Return the delta rule's tensors, keys of length 1."""
    batch, length, heads, _ = shape
    drawn = qkv(g, shape)
    return {**drawn, "k": F.normalize(drawn["k"], dim=-1), "beta": torch.sigmoid(normal(g, batch, length, heads))}


def gated_delta(g: torch.Generator, shape: Shape) -> Tensors:
    """Return the gated delta rule's tensors."""
    batch, length, heads, _ = shape
    return {**delta(g, shape), "log_decay": F.logsigmoid(2 + normal(g, batch, length, heads))}


def product(g: torch.Generator, shape: Shape) -> Tensors:
    """Return DeltaProduct's tensors: two keys and values a step."""
    batch, length, heads, width = shape
    return {
        "q": normal(g, batch, length, heads, width),
        "k": F.normalize(normal(g, batch, length, 2, heads, width), dim=-1),
        "v": normal(g, batch, length, 2, heads, width),
        "beta": 2 * torch.sigmoid(normal(g, batch, length, 2, heads)),
        "log_decay": F.logsigmoid(2 + normal(g, batch, length, heads)),
    }


def goose(g: torch.Generator, shape: Shape) -> Tensors:
    """Return RWKV-7's tensors."""
    batch, length, heads, width = shape
    removed = F.normalize(normal(g, batch, length, heads, width), dim=-1)
    rate = torch.sigmoid(normal(g, batch, length, heads, width))
    log_decay = -torch.exp(torch.tensor(-0.5)) * torch.sigmoid(normal(g, batch, length, heads, width))
    return {**qkv(g, shape), "a": -removed, "b": removed * rate, "log_decay": log_decay}


def inner_model(g: torch.Generator, shape: Shape) -> Tensors:
    """Return TTT-linear's tensors, one step size for each mini-batch."""
    batch, length, heads, width = shape
    eta = torch.sigmoid(normal(g, batch, length // MINI_BATCH, heads)).repeat_interleave(MINI_BATCH, 1) / width
    return {
        **qkv(g, shape),
        "eta": eta,
        "W0": 0.02 * normal(g, heads, width, width),
        "b0": 0.02 * normal(g, heads, width),
        "ln_weight": 1 + 0.1 * normal(g, heads, width),
        "ln_bias": 0.1 * normal(g, heads, width),
    }


def channels(g: torch.Generator, shape: Shape) -> Tensors:
    """Return RWKV-4's tensors, with as many channels as the heads have features."""
    batch, length, heads, width = shape
    size = heads * width
    k, v = normal(g, 2, batch, length, size)
    return {"k": k, "v": v, "w": normal(g, size).exp(), "u": normal(g, size)}


def cell(g: torch.Generator, shape: Shape, gates: int = 4) -> Tensors:
    """Return the tensors of a recurrent cell."""
    batch, length, heads, width = shape
    return {
        "wx": normal(g, batch, length, heads, gates, width),
        "R": normal(g, heads, gates, width, width) / (2 * width**0.5),
        "bias": normal(g, heads, gates, width),
    }
