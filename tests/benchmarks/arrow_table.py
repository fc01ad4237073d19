"""Train pLSTM and a ViT of equal parameters to tell whether an arrow points at a circle, and test on larger images.

The published task (tests/benchmarks/arrows.py) at a third of its resolution: 192 pixels a side, reduced to 64, in
patches of 8; the larger images are 384 pixels, reduced to 128. Every epoch draws new images. Both models get the same
images in the same order, AdamW with weight decay 0.05, gradients clipped at norm 1, and a cosine schedule.

Run from the repository: ``python -m tests.benchmarks.arrow_table --out FOLDER``. Each finished run is a JSON file in
the output folder; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scanweave.core import create_grid_mixer

from .arrows import Arrows

SIDES = (192, 256, 384)
REDUCE, PATCH = 3, 8
WIDTH, HEAD, BATCH = 96, 32, 128
MODELS = ("plstm", "vit")


class Corners(nn.Module):
    """pLSTM for images: patches, blocks of (norm, plstm2d, norm, MLP) that take turns in P- and D-mode, four corners.

    No positions are added: the scans know where they are.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.mixers = nn.ModuleList(
            create_grid_mixer("plstm2d", WIDTH, mode="PD"[i % 2], head_dim=HEAD) for i in range(depth)
        )
        self.mlps = nn.ModuleList(Mlp(WIDTH, 4 * WIDTH) for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2 * depth + 1))
        self.head = nn.Linear(4 * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).movedim(1, -1)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x[:, [0, 0, -1, -1], [0, -1, 0, -1]]).flatten(1))


def build(name: str, depth: int) -> nn.Module:
    """Return a model of 64 x 64 images that also takes larger ones."""
    if name == "plstm":
        return Corners(depth)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDES[0] // REDUCE, patch_size=PATCH, embed_dim=WIDTH, num_classes=2,
        depth=depth, num_heads=WIDTH // HEAD, dynamic_img_size=True,
    )  # fmt: skip


def accuracy(model: nn.Module, side: int, images: int) -> float:
    """Return the share of right answers on test images."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(Arrows(images, side, REDUCE, seed=10**6), batch_size=BATCH):
            right += int((model(x).argmax(1) == y).sum())
    model.train()
    return right / images


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model and test it on every size."""
    torch.manual_seed(seed)
    model = build(name, args.depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    total = args.epochs * args.images // BATCH
    warm = max(1, total // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    begin = time.perf_counter()
    for epoch in range(args.epochs):
        losses: list[Tensor] = []
        images = Arrows(args.images, SIDES[0], REDUCE, seed=seed * 1000 + epoch)
        for x, y in DataLoader(images, batch_size=BATCH, drop_last=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        print(f"{name} {seed}: epoch {epoch}, loss {mean:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    return {
        "model": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.perf_counter() - begin,
        "accuracy": {str(side): accuracy(model, side, args.test_images) for side in SIDES},
    }


def table(out: Path) -> str:
    """Return the finished runs as a markdown table."""
    sizes = " | ".join(f"{side // REDUCE} x {side // REDUCE}" for side in SIDES)
    lines = [
        f"| trained at {SIDES[0] // REDUCE} x {SIDES[0] // REDUCE} | parameters | seconds | {sizes} | seeds |",
        f"| --- | --- | --- |{' --- |' * len(SIDES)} --- |",
    ]
    done = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    for name in MODELS:
        found = [r for r in done if r["model"] == name]
        if not found:
            continue
        cells = [name, str(found[0]["parameters"]), f"{statistics.mean(r['seconds'] for r in found):.0f}"]
        for side in SIDES:
            values = [r["accuracy"][str(side)] for r in found]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {' | '.join([*cells, str(len(found))])} |")
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000, help="new images an epoch")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for name in args.models:
            path = args.out / f"{name}-{seed}.json"
            if path.exists():
                continue
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(train(name, seed, args), indent=2))
            os.replace(beside, path)
    print(table(args.out))


if __name__ == "__main__":
    main()
