"""ConvS5 beside a ConvLSTM of the same width, and what a frame costs after many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import Tensor

from scanweave.core import ClipMixer, create_clip_mixer
from scanweave.kernels import conv_scan, linear_scan

from .compare import compare
from .floor import copy_bandwidth, gemm_rate

pytestmark = pytest.mark.bench

BATCH, FRAMES, SIDE, WIDTH = 1, 64, 16, 64


@torch.no_grad()
def test_the_recurrence(bench_out: Path | None) -> None:
    states = WIDTH // 2
    a = torch.polar(torch.rand(states), torch.rand(states))
    bu = torch.randn(BATCH, FRAMES, SIDE, SIDE, states, dtype=torch.complex64)
    whole = a.expand_as(bu).contiguous()

    def loop() -> Tensor:
        x, found = torch.zeros_like(bu[:, 0]), []
        for frame in bu.unbind(1):
            x = a * x + frame
            found.append(x)
        return torch.stack(found, 1)

    calls = {
        "scanweave": lambda: conv_scan(a, bu),
        "linear_scan, decay written out": lambda: linear_scan(whole, bu),
        "loop": loop,
    }
    title = f"conv_scan forward, B {BATCH} L {FRAMES}, {SIDE} x {SIDE}, P {states} complex"
    found = compare(title, calls, floor_seconds=2 * bu.nbytes / copy_bandwidth(2 * bu.nbytes), out=bench_out)
    assert found["scanweave"] < found["loop"]


def _training(mixer: ClipMixer, x: Tensor) -> Callable[[], object]:
    leaves = list(mixer.parameters())
    return lambda: torch.autograd.grad(mixer(x)[0].square().mean(), leaves)


def test_training_step(bench_out: Path | None) -> None:
    x = torch.randn(BATCH, FRAMES, SIDE, SIDE, WIDTH)
    calls = {name: _training(create_clip_mixer(name, WIDTH), x) for name in ("convs5", "convlstm")}
    title = f"a training step, B {BATCH}, {FRAMES} frames of {SIDE} x {SIDE}, width {WIDTH}"
    # ConvS5's two convolutions of 3 x 3, three times: forward, and for either gradient.
    floor = 3 * 2 * 2 * 9 * x.numel() * WIDTH / gemm_rate()
    found = compare(title, calls, floor_seconds=floor, out=bench_out, rounds=5)
    assert found["convs5"] < found["convlstm"]


@torch.no_grad()
def test_a_frame_costs_the_same_after_many(bench_out: Path | None) -> None:
    lines = [f"one frame of {SIDE} x {SIDE}, width {WIDTH}, milliseconds after so many frames"]
    for name in ("convs5", "convlstm"):
        mixer, state, seen = create_clip_mixer(name, WIDTH), None, 0
        frame, cells, times = torch.randn(1, SIDE, SIDE, WIDTH), [], []
        for wanted in (1, 100, 1000):
            while seen < wanted:
                _, state = mixer.step(frame, state)
                seen += 1
            runs = []
            for _ in range(20):
                start = perf_counter()
                mixer.step(frame, state)
                runs.append(perf_counter() - start)
            times.append(sorted(runs)[10])
            cells.append(f"{wanted}: {1e3 * times[-1]:.2f}")
        lines.append(f"{name:<10} {', '.join(cells)}")
        assert times[-1] < 3 * times[0]
    text = "\n".join(lines)
    print(f"\n{text}")
    if bench_out is not None:
        (bench_out / "conv_frames.txt").write_text(text + "\n")
