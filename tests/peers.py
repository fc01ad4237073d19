"""Other people's implementations of the ops, in PyTorch and on a CPU, called as the package's own are.

Each function here finds a peer and returns it as a function of the op's tensors in the layout (B, L, H, D), with the
op's default scale, that gives the output; where the peer is not installed the test that asks for it skips.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .installed import import_peer

Peer = Callable[..., Tensor]


def find(module: str, name: str) -> Callable[..., Any]:
    """Return a function of an installed peer; skip the test where it is not installed."""
    return getattr(import_peer(module), name)


def by_head(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Exchange the axes of steps and heads."""
    return tuple(x.transpose(1, 2) for x in tensors)


def retention() -> Peer:
    """fla's retention, all pairs of steps at once; its decays are RetNet's."""
    run = find("fla.ops.retention.naive", "naive_retention")
    return lambda q, k, v, log_decay: run(*by_head(q, k, v)).transpose(1, 2)


def simple_gla() -> Peer:
    """fla's chunked form for one decay per head; a constant one is spread over the steps."""
    run = find("fla.ops.simple_gla.naive", "naive_chunk_simple_gla")
    return lambda q, k, v, log_decay: run(q, k, v, log_decay.expand(q.shape[:3]))[0]


def gla() -> Peer:
    """fla's loop for one decay per row of the state."""
    run = find("fla.ops.gla.naive", "naive_recurrent_gla")
    return lambda q, k, v, log_decay: run(q, k, v, log_decay)[0]


def gla_chunked() -> Peer:
    """fla's chunked form of a diagonal plus rank-one transition, without the rank-one term: no chunked GLA is there."""
    run = dplr_chunked()
    return lambda q, k, v, log_decay: run(q, k, v, torch.zeros_like(k), torch.zeros_like(k), log_decay)


def rwkv6() -> Peer:
    """fla's loop for RWKV-6."""
    run = find("fla.ops.rwkv6.recurrent_naive", "naive_recurrent_rwkv6")
    return lambda q, k, v, log_decay, bonus: run(*by_head(q, k, v, log_decay), bonus)[0].transpose(1, 2)


def rwkv6_chunked() -> Peer:
    """fla's chunked form of RWKV-6, which has no gradient and scales nothing."""
    run = find("fla.ops.rwkv6.chunk_naive", "naive_chunk_rwkv6")
    return lambda q, k, v, log_decay, bonus: run(*by_head(q * q.shape[-1] ** -0.5, k, v, log_decay), bonus).transpose(
        1, 2
    )


def ssd() -> Peer:
    """transformers' chunked Mamba-2; its step size, which multiplies decays and values, is 1."""
    run = find("transformers.models.mamba2.modeling_mamba2", "mamba2_chunk_scan")
    return lambda q, k, v, log_decay: run(
        v, torch.ones_like(log_decay), log_decay, k, q * q.shape[-1] ** -0.5, chunk_size=64
    )


def mlstm(form: str = "native_autograd") -> Peer:
    """NX-AI's chunked mLSTM; ``native_custbw`` leaves the normaliser's gradient out."""
    run = find("mlstm_kernels.torch.chunkwise.native", f"mlstm_chunkwise__{form}")
    return lambda q, k, v, input_gate, forget_gate: run(*by_head(q, k, v, input_gate, forget_gate), eps=0.0).transpose(
        1, 2
    )


def mlstm_parallel() -> Peer:
    """xlstm's own mLSTM, all pairs of steps at once."""
    run = find("xlstm.blocks.mlstm.backends", "parallel_stabilized_simple")
    return lambda q, k, v, input_gate, forget_gate: run(
        *by_head(q, k, v, input_gate.unsqueeze(-1), forget_gate.unsqueeze(-1)), eps=0.0
    ).transpose(1, 2)


def delta() -> Peer:
    """fla's chunked delta rule."""
    run = find("fla.ops.delta_rule.naive", "delta_rule_chunkwise")
    return lambda q, k, v, beta: run(*by_head(q, k, v, beta))[0].transpose(1, 2)


def gated_delta() -> Peer:
    """fla's chunked gated delta rule."""
    run = find("fla.ops.gated_delta_rule.naive", "naive_chunk_gated_delta_rule")
    return lambda q, k, v, beta, log_decay: run(q, k, v, log_decay, beta)[0]


def gated_delta_transformers() -> Peer:
    """transformers' chunked gated delta rule, Qwen3-Next's; no decay is a decay of 1."""
    run = find("transformers.models.qwen3_next.modeling_qwen3_next", "torch_chunk_gated_delta_rule")
    # Where fla is installed the wrapper hands over to its GPU kernels, on a CPU too.
    run = inspect.unwrap(run)
    return lambda q, k, v, beta, log_decay=None: run(
        q, k, v, torch.zeros_like(beta) if log_decay is None else log_decay, beta
    )[0]


def delta_product() -> Peer:
    """fla's loop for DeltaProduct, which has the keys of a step one after another."""
    run = find("fla.ops.gated_delta_product.naive", "naive_recurrent_gated_delta_product")
    return lambda q, k, v, beta, log_decay: run(
        q,
        *(x.flatten(1, 2) for x in (k, v)),
        log_decay,
        beta.flatten(1, 2),
        q.shape[-1] ** -0.5,
        num_householder=k.shape[2],
    )[0]


def dplr() -> Peer:
    """fla's loop for a diagonal plus rank-one transition."""
    return _dplr("dplr_recurrence")


def dplr_chunked() -> Peer:
    """fla's chunked form of a diagonal plus rank-one transition."""
    return _dplr("dplr_chunkwise")


def _dplr(name: str) -> Peer:
    run = find("fla.ops.generalized_delta_rule.dplr.naive", name)
    return lambda q, k, v, a, b, log_decay: run(*by_head(q, k, v, a, b, log_decay))[0].transpose(1, 2)


def ttt_state() -> Peer:
    """Return fla's TTT-linear, of which the final weights and bias count: its output adds the inner map, not q.

    Its step size belongs to the step that reads, so let it be one for a whole mini-batch.
    """
    run = find("fla.ops.ttt.naive", "chunk_ttt_linear_ref")

    def call(
        q: Tensor, eta: Tensor, W0: Tensor, b0: Tensor, ln_weight: Tensor, ln_bias: Tensor, **kv: Tensor
    ) -> Tensor:
        start = {"initial_state": W0.unsqueeze(0), "initial_state_bias": b0.unsqueeze(1).unsqueeze(0)}
        # It scales q in place.
        _, W, b = run(q.clone(), **kv, w=ln_weight, b=ln_bias, eta=eta.unsqueeze(-1), **start, output_final_state=True)
        return torch.cat([W, b], 2)

    return call


def wkv4() -> Peer:
    """transformers' loop for RWKV-4."""
    run = find("transformers.models.rwkv.modeling_rwkv", "rwkv_linear_attention_cpu")
    return lambda k, v, w, u: run(w.log(), u, k, v)[0]


def flashrnn(cell: str, backend: str = "vanilla") -> Peer:
    """FlashRNN's loop; ``vanilla_fwbw`` has a backward pass of its own."""
    run = find("flashrnn", "flashrnn")

    def call(wx: Tensor, R: Tensor, bias: Tensor) -> Tensor:
        if cell == "gru":
            # The gates of its recurrent product: what the reset gate scales, reset, update; a bias of wx's own last.
            R, bias = R[:, [2, 0, 1]], torch.cat([bias[:, [2, 0, 1]], torch.zeros_like(bias[:, :1])], 1)
        gates_first = wx.transpose(2, 3), R.transpose(0, 1), bias.transpose(0, 1)
        # The states come first, and h is the first of them.
        return run(*gates_first, function=cell, backend=backend, dtype="float32")[0][0]

    return call


def xlstm_slstm() -> Peer:
    """xlstm's own loop for the sLSTM."""
    run = find("xlstm.blocks.slstm.src.vanilla", "slstm_forward")
    step = find("xlstm.blocks.slstm.src.vanilla.slstm", "slstm_forward_pointwise")

    def call(wx: Tensor, R: Tensor, bias: Tensor) -> Tensor:
        batch, _, heads, _, width = wx.shape
        gates = wx.permute(1, 0, 3, 2, 4).flatten(2)
        state = wx.new_zeros(4, batch, heads * width)
        states = run(gates, state, R.flatten(1, 2), bias.transpose(0, 1).flatten(), step)[0]
        return states[0, 1:].transpose(0, 1).unflatten(2, (heads, width))

    return call
