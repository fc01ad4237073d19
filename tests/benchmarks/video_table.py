"""Train ConvS5 and ConvLSTM on moving digits, with as many parameters, for the same processor time; print the table.

Each run makes clips and trains with one thread until it has had its seconds of a processor, whatever else runs; the
learning rate rises over the first tenth of them and falls as half a cosine. Clips of 20 frames of 64 x 64 pixels, two
digits each, no clip twice. The last weights go on from 10 frames of 50 clips of digits that none was trained on; SSIM
and MSE (summed over a frame's pixels) are means over the first 10 and the first 50 predicted frames.

Run from the repository: ``python -m tests.benchmarks.video_table --out FOLDER --seconds 600``. Each finished run is a
JSON file in the output folder, with strips beside it; a run that has one is not done again.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from scanweave.vision.video import PredictionData, VideoPrediction

from .budget import Budget, train, write_result
from .forecast_runs import results

MIXERS = {"convs5": ({"d_state": 64}, 48), "convlstm": ({}, 32)}
DEPTH, SIZE, HORIZONS, BATCH, CLIPS = 3, 64, (10, 50), 4, 50


@dataclass(frozen=True)
class Run:
    """One mixer of clips with one seed: how long it trains, at which rate."""

    mixer: str
    seed: int
    seconds: float
    lr: float

    @property
    def name(self) -> str:
        return f"{self.mixer}-{self.seed}"


def do(run: Run, out: Path) -> None:
    """Train for the budget, test the last weights, and write the result."""
    pl.seed_everything(run.seed, verbose=False)
    options, width = MIXERS[run.mixer]
    task = VideoPrediction(run.mixer, options, width=width, depth=DEPTH, lr=run.lr)
    data = _data(run.seed)
    found = train(task, data, Budget(run.seconds, warmup=0.1), out / run.name)
    write_result(out / f"{run.name}.json", {**asdict(run), **found})
    print(f"{run.name}: SSIM {found['test/ssim_10']:.3f}, {found['steps']} steps", flush=True)


def do_nothing(out: Path) -> None:
    """Write what black frames and the last known frame score on the same clips, to compare with."""
    data = _data(0)
    data.setup("test")
    clips = torch.cat([batch["video"] for batch in data.test_dataloader()])
    truth, last = clips[:, data.known :], clips[:, data.known - 1 : data.known]
    for name, made in (("black frames", torch.zeros_like(truth)), ("last frame again", last.expand_as(truth))):
        found: dict[str, object] = {"mixer": name, "seed": 0}
        for horizon in HORIZONS:
            pair = [frames[:, :horizon].flatten(0, 1) for frames in (made, truth)]
            found[f"test/ssim_{horizon}"] = float(structural_similarity_index_measure(*pair, data_range=1.0))
            found[f"test/mse_{horizon}"] = float(torch.nn.functional.mse_loss(*pair))
        write_result(out / f"{name.replace(' ', '_')}.json", found)


def _data(seed: int) -> PredictionData:
    return PredictionData(
        size=SIZE, horizons=list(HORIZONS), seed=seed, batch_size=BATCH, num_workers=0, test_clips=CLIPS
    )


def table(out: Path) -> str:
    """Return the finished runs as a markdown table."""
    lines = [
        "| mixer | seed | SSIM 10 | SSIM 50 | MSE 10 | MSE 50 | steps | CPU-s a step | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in results(out):
        cells = [
            found["mixer"], str(found["seed"]), *(f"{found[f'test/ssim_{h}']:.3f}" for h in HORIZONS),
            *(f"{found[f'test/mse_{h}'] * SIZE**2:.1f}" for h in HORIZONS), str(found.get("steps", "")),
            f"{found['trained_seconds'] / found['steps']:.2f}" if "steps" in found else "",
            str(found.get("parameters", "")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--seconds", type=float, default=600.0, help="of a processor, each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [Run(mixer, seed, args.seconds, args.lr) for seed in range(args.seeds) for mixer in args.mixers]
    left = [run for run in wanted if not (args.out / f"{run.name}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(left)} done before", flush=True)
    do_nothing(args.out)
    for run in left:
        do(run, args.out)
    print(table(args.out))


if __name__ == "__main__":
    main()
