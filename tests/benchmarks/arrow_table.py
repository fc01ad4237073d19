"""Train pLSTM and a ViT of equal parameters to tell whether an arrow points at a circle, and test on larger images.

The published task (tests/benchmarks/arrows.py) at a third of its resolution: 192 pixels a side, reduced to 64; the
larger images are 256 and 384 pixels, reduced to 85 and 128. Every epoch draws new images. Both models have the same
stem of four convolutions that leaves one token for 8 x 8 pixels, get the same images in the same order, AdamW with
weight decay 0.05, gradients clipped at norm 1, and a cosine schedule.

The published runs see five million images. To learn the task from 60,000, both models are also asked in training where
the circle lies as seen from the arrow and where the arrow points (cosine and sine of each angle, squared error); the
answer that is tested is the published one.

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

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scanweave.core import create_grid_mixer
from scanweave.vision.backbones.isotropic import OnGrid, Site, TokenBlock

from .arrows import Arrows

SIDES = (192, 256, 384)
REDUCE, PATCH = 3, 8
WIDTH, BATCH = 64, 32
HEADS = {"plstm": 8, "vit": 2}
VIT_RATIO = 4.4375
"""Where pLSTM has gates the ViT has wider feed-forward layers: both have the same number of parameters."""
MODELS = ("plstm", "vit")


class Net(nn.Module):
    """A stem of four convolutions, blocks of pLSTM (P- and D-mode in turn) or of attention, the mean of all tokens.

    Both have learned positions, resampled for larger images.
    """

    def __init__(self, kind: str, depth: int) -> None:
        super().__init__()
        layers = [(3, WIDTH // 2, 2), (WIDTH // 2, WIDTH, 2), (WIDTH, WIDTH, 1), (WIDTH, WIDTH, 2)]
        self.stem = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.GELU()) for a, b, s in layers)
        )
        self.kind, tokens = kind, SIDES[0] // REDUCE // PATCH
        self.positions = nn.Parameter(0.02 * torch.randn(1, WIDTH, tokens, tokens))
        self.blocks = nn.ModuleList(self._block(i) for i in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 + 4)

    def _block(self, index: int) -> nn.Module:
        if self.kind == "vit":
            return Block(WIDTH, HEADS[self.kind], mlp_ratio=VIT_RATIO)
        mixer = create_grid_mixer(
            "plstm2d", WIDTH, mode="PD"[index % 2], head_dim=WIDTH // HEADS[self.kind], join="heads"
        )
        return TokenBlock(Site(index, WIDTH, 0.0), OnGrid(mixer), nn.LayerNorm, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        size = (x.shape[2], x.shape[3])
        x = (x + nn.functional.interpolate(self.positions, size, mode="bicubic")).flatten(2).mT
        for block in self.blocks:
            x = block(x) if self.kind == "vit" else block(x, size)
        x = self.norm(x)
        return self.head(x.mean(1))


def accuracy(model: nn.Module, side: int, images: int) -> float:
    """Return the share of right answers on test images."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y, _ in DataLoader(Arrows(images, side, REDUCE, seed=10**6), batch_size=BATCH):
            right += int((model(x)[:, :2].argmax(1) == y).sum())
    model.train()
    return right / images


def train(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model and test it on every size."""
    torch.manual_seed(seed)
    model = Net(name, args.depth)
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
        for x, y, directions in DataLoader(images, batch_size=BATCH, drop_last=True):
            answer, seen = model(x).split([2, 4], 1)
            loss = nn.functional.cross_entropy(answer, y)
            losses.append(loss.detach())
            loss = loss + 4 * nn.functional.mse_loss(seen, directions)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
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
