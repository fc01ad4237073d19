"""TPGN's training step beside the same network by grouped convolutions, one thread, in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from scanweave.timeseries.forecasters.tpgn import TPGNNetwork
from tests.timeseries.reference_tpgn import ConvolutionTPGN
from tests.timeseries.windows import make_batch, make_spec

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("one_thread")]


def training_step(network: nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(network(batch), batch["future"]).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize(("channels", "hidden"), [(1, 2), (7, 8), (1, 128)])
def test_training_step(benchmark, capsys, channels: int, hidden: int) -> None:
    spec = make_spec(lookback=168, horizon=168, channels=channels)
    batch = make_batch(spec, 32)
    fast = TPGNNetwork(spec, hidden_size=hidden)
    slow = ConvolutionTPGN(spec, hidden, norm=True)
    slow.copy_from(fast)
    ours, peer = training_step(fast, batch), training_step(slow, batch)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    # In turns, so that a busy machine slows both alike; the thread's own time leaves others out.
    for _ in range(15 if hidden > 100 else 60):
        for name, step in (("ours", ours), ("peer", peer)):
            begin = time.thread_time()
            step()
            times[name].append(time.thread_time() - begin)
    benchmark.pedantic(ours, rounds=10, warmup_rounds=2)
    ours_ms, peer_ms = (1e3 * statistics.median(times[name]) for name in ("ours", "peer"))
    benchmark.extra_info.update(peer="grouped convolutions", peer_ms=peer_ms, ratio=peer_ms / ours_ms)
    with capsys.disabled():
        print(
            f"\nTPGN, {channels} channels, d {hidden}: {ours_ms:.2f} ms a step; "
            f"grouped convolutions {peer_ms:.2f} ms, {peer_ms / ours_ms:.2f} times as long"
        )
    assert ours_ms < peer_ms
