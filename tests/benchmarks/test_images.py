"""Image backbones beside timm's of their size: images per second at 224 pixels, and the cost of larger images.

Images per CPU-second are those of one thread in a second of its processor: a figure to hold against code that was
measured elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import scanweave.vision  # noqa: F401  registers the backbones with timm

from .compare import compare
from .floor import gemm_rate, median_seconds

pytestmark = pytest.mark.bench

OURS = ("vim_tiny", "vil_tiny", "vmamba_tiny", "plstm_vis_tiny", "scanvit_tiny")
VIT = "vit_tiny_patch16_224"
PEERS = (VIT, "convnext_atto", "mambaout_femto", "efficientvim_m1")
BATCH, SIZES = 8, (224, 384, 512, 768, 1024)


def _names() -> list[str]:
    """Return the backbones to time, the package's own first."""
    return [*(name for name in OURS if timm.is_model(name)), *PEERS]


def _create(name: str, size: int = 224) -> nn.Module:
    torch.manual_seed(0)
    sized = {"img_size": size} if size != 224 else {}
    return timm.create_model(name, **sized)


def _images(batch: int, size: int = 224) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def _floor(images: Tensor, passes: int) -> float:
    """Return the seconds of ViT's matrix products at this machine's best rate; a yardstick for all rows alike."""
    model = _create(VIT).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return passes * counter.get_total_flops() / gemm_rate()


def _report(title: str, calls: dict[str, Callable[[], object]], floor: float, out: Path | None, rounds: int) -> None:
    found = compare(
        f"{title}, batch {BATCH}, {VIT}'s products as floor", calls, floor_seconds=floor, out=out, rounds=rounds
    )
    speed = {name: 1e3 * BATCH / milliseconds for name, milliseconds in found.items()}
    print(f"{'':28}{'images/s':>10}{'x ' + VIT.split('_patch')[0]:>14}")
    for name, value in speed.items():
        print(f"{name:28}{value:10.1f}{value / speed[VIT]:14.2f}")


def test_forward(bench_out: Path | None) -> None:
    images = _images(BATCH)
    models = {name: _create(name).eval() for name in _names()}
    with torch.no_grad():
        calls = {name: lambda model=model: model(images) for name, model in models.items()}
        assert all(torch.isfinite(call()).all() for call in calls.values())
        _report("images forward", calls, _floor(images, 1), bench_out, rounds=5)


@pytest.mark.usefixtures("one_thread")
@torch.no_grad()
def test_forward_by_one_thread() -> None:
    images = _images(BATCH // 2)
    models = {name: _create(name).eval() for name in _names()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(6):
        for name, model in models.items():
            begin = time.process_time()
            assert torch.isfinite(model(images)).all()
            seconds[name].append(time.process_time() - begin)
    print(f"\n{'images forward, one thread':28}{'images/CPU-s':>14}")
    for name, rounds in seconds.items():
        print(f"{name:28}{len(images) / statistics.median(rounds[1:]):14.2f}")


def _step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    target = torch.arange(len(images))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def test_training_step(bench_out: Path | None) -> None:
    images = _images(BATCH)
    calls = {name: _step(_create(name).train(), images) for name in _names()}
    assert all(torch.isfinite(call()) for call in calls.values())
    _report("images training step", calls, _floor(images, 3), bench_out, rounds=3)


@torch.no_grad()
def test_cost_against_image_size() -> None:
    names = [name for name in ("vim_tiny", "vil_tiny") if timm.is_model(name)]
    seconds: dict[str, list[float]] = {}
    for name in (*names, VIT):
        seconds[name] = []
        for size in SIZES:
            model, image = _create(name, size).eval(), _images(1, size)
            seconds[name].append(median_seconds(lambda model=model, image=image: model(image), rounds=3))
    print(f"\none image, milliseconds ({torch.get_num_threads()} threads)")
    print(f"{'':28}" + "".join(f"{size:>10}" for size in SIZES) + f"{'growth':>10}")
    for name, row in seconds.items():
        print(f"{name:28}" + "".join(f"{1e3 * value:10.1f}" for value in row) + f"{row[-1] / row[0]:10.1f}")
    growth = {name: row[-1] / row[0] for name, row in seconds.items()}
    # A scan's cost grows as the number of patches, attention's as its square.
    assert all(growth[name] < growth[VIT] for name in names)
