"""Train stacks of a mixer on scikit-learn's 8 x 8 digits, read pixel by pixel, and print test accuracies.

Run from the repository: ``python -m tests.benchmarks.sequential_digits --mixers s4d s4 gru``.
Each image is a series of 64 values in raster order; of the 1,797 images 30 % are the test set, stratified, the same for
every mixer and seed. Seeds differ in weights and order. The last epoch counts: there is no choice by test accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scanweave.core import Stack

SPLIT_SEED = 0
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Digits:
    """Series (N, 64, 1) in [-1, 1] and labels (N,)."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load() -> Digits:
    """Return the split digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)
    train, test = ((torch.as_tensor(part).float() / 8 - 1).unsqueeze(-1) for part in parts[:2])
    train_labels, test_labels = (torch.as_tensor(part) for part in parts[2:])
    return Digits((train, train_labels), (test, test_labels))


class Classifier(nn.Module):
    """A value's embedding, a stack of the mixer, the mean over time, a linear head."""

    def __init__(self, mixer: str, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.stack = Stack(width, depth, mixer, dropout=dropout)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 10) of series (B, L, 1)."""
        return self.head(self.stack(self.embed(x))[0].mean(1))


def _optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1 and not getattr(p, "_no_weight_decay", False)]
    known = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in known]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], rate)


def run(mixer: str, seed: int, data: Digits, options: argparse.Namespace) -> tuple[float, int, float]:
    """Train once; return the test accuracy, the number of parameters and the seconds."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    model = Classifier(mixer, options.width, options.depth, options.dropout)
    optimizer = _optimizer(model, options.rate)
    x, labels = data.train
    batches = -(-len(x) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=options.epochs * batches)
    for _ in range(options.epochs):
        model.train()
        for index in torch.randperm(len(x)).split(options.batch):
            loss = nn.functional.cross_entropy(model(x[index]), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(data.test[0]).argmax(1) == data.test[1]).float().mean()
    return float(right), sum(p.numel() for p in model.parameters()), time.perf_counter() - begin


def main() -> None:
    """Print a table: mean and range of the test accuracy over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", default=["s4d", "s4", "gru"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    data = load()
    print(
        f"{len(data.train[0])} training and {len(data.test[0])} test series of 64 values; {options.epochs} epochs, "
        f"width {options.width}, depth {options.depth}, {options.seeds} seeds, {torch.get_num_threads()} threads\n"
    )
    print(
        "| mixer | test accuracy, % | range | parameters | seconds a run |\n| --- | --- | --- | --- | --- |", flush=True
    )
    for mixer in options.mixers:
        found = []
        for seed in range(options.seeds):
            found.append(run(mixer, seed, data, options))
            print(
                f"{mixer}, seed {seed}: {100 * found[-1][0]:.2f} %, {found[-1][2]:.0f} s", file=sys.stderr, flush=True
            )
        accuracies, sizes, seconds = zip(*found, strict=True)
        mean, low, high = (100 * f(accuracies) for f in (statistics.mean, min, max))
        print(
            f"| {mixer} | {mean:.2f} | {low:.2f} to {high:.2f} | {sizes[0]:,} | {statistics.median(seconds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
