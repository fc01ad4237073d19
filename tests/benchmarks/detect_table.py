"""Train detectors on made-up scenes, each for the same processor time, and print the table; or overfit real frames.

Each run reads, augments and trains with one thread until it has had its seconds of a processor, whatever else runs; the
learning rate rises over the first tenth of them and falls as half a cosine. All get the same optimiser, rate, batches
and augmentation, and their last weights are tested on scenes that none was trained on, by KITTI's rules (40 recall
positions, moderate).

Run from the repository: ``python -m tests.benchmarks.detect_table --out FOLDER --seconds 900``. Each finished run is a
JSON file in the output folder; a run that has one is not done again. ``--overfit KITTI`` trains on all frames of a
KITTI tree instead, unchanged, tests on the same, and draws labels and detections.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.optim.swa_utils import update_bn

from scanweave.pointcloud import create_detector
from scanweave.pointcloud.data import Detect3dData, labelled
from scanweave.pointcloud.kitti import KittiAP, write_scenes
from scanweave.pointcloud.results import kitti_objects
from scanweave.pointcloud.sources import KittiSource
from scanweave.pointcloud.task import Detection3d, draw_views

from .budget import Budget, rate, train, write_result
from .forecast_runs import results

OPERATORS = ("mamba", "rwkv", "retnet", "xlstm", "ttt")
DETECTORS = (*(f"lion_{name}_kitti_small" for name in OPERATORS), "pointpillars_kitti_small", "second_kitti_small")
CLASSES = ("Car", "Pedestrian", "Cyclist")
WARMUP = 0.1


@dataclass(frozen=True)
class Run:
    """One detector: how long it trains, on what, at which rate."""

    detector: str
    seconds: float
    lr: float
    scenes: int
    batch: int


def do(run: Run, out: Path) -> None:
    """Train for the budget, test the last weights, and write the result."""
    pl.seed_everything(0, verbose=False)
    task = Detection3d(run.detector, lr=run.lr, schedule="constant")
    data = Detect3dData(str(scenes(out, run.scenes)), batch_size=run.batch, num_workers=0)
    found = train(task, data, Budget(run.seconds, WARMUP), out / "runs" / run.detector, clip=10.0)
    write_result(out / f"{run.detector}.json", {**asdict(run), **found})
    print(f"{run.detector}: {found['test/ap']:.1f}, {found['samples_seen']} frames", flush=True)


def scenes(out: Path, count: int) -> Path:
    """Return a KITTI tree of made-up scenes, written once."""
    root = out / f"scenes-{count}"
    if not (root / "ImageSets" / "val.txt").is_file():
        write_scenes(root, count)
    return root


def overfit(run: Run, root: Path, out: Path) -> None:
    """Train on all frames of a KITTI tree, test on the same, draw them, and write the result."""
    torch.manual_seed(0)
    source = KittiSource(str(root))
    frames = [labelled(source.read(index), CLASSES) for index in range(len(source.names))]
    detector = create_detector(run.detector, CLASSES)
    optimizer = torch.optim.AdamW(detector.parameters(), run.lr, weight_decay=0.01)
    begin, steps = time.process_time(), 0
    while (share := (time.process_time() - begin) / run.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = run.lr * rate(share, WARMUP)
        chosen = [frames[i] for i in torch.randperm(len(frames))[: run.batch].tolist()]
        points, boxes, labels = (list(column) for column in zip(*chosen, strict=True))
        loss = detector.loss(points, boxes, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        steps += 1
    # The running statistics lag behind weights that changed this fast: they are taken anew.
    points = [frame[0] for frame in frames]
    update_bn([[points[i : i + run.batch]] for i in range(0, len(points), run.batch)], detector)
    detector.eval()
    metric = KittiAP()
    for index in range(len(frames)):
        frame = source.read(index)
        found = detector.detect([frame.points])[0]
        metric.update([index], [frame.objects], [kitti_objects(found, CLASSES, *frame.camera)])
        draw_views(out / f"overfit-{run.detector}", frame, found.boxes, detector.reader.grid.point_range)
    values = {key: float(value) for key, value in metric.compute().items() if "/3d/R40/" in key}
    values = {key: value for key, value in values.items() if not math.isnan(value)}
    write_result(out / f"overfit-{run.detector}.json", {**asdict(run), **values, "steps": steps, "loss": float(loss)})
    print(f"{run.detector}: loss {float(loss):.3f} after {steps} steps, {values}", flush=True)


def table(out: Path) -> str:
    """Return the finished runs as a markdown table, the best cars first."""
    lines = [
        "| detector | Car 3D | Car BEV | Pedestrian 3D | Cyclist 3D | frames seen | frames/CPU-s | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = []
    for found in results(out):
        if "samples_seen" not in found:
            continue
        keys = ("Car/3d", "Car/bev", "Pedestrian/3d", "Cyclist/3d")
        values = [found.get(f"test/{key}/R40/moderate", 0.0) for key in keys]
        cells = [
            found["detector"], *(f"{value:.1f}" for value in values), str(found["samples_seen"]),
            f"{found['samples_seen'] / found['trained_seconds']:.2f}", f"{found['parameters'] / 1e6:.2f} M",
        ]  # fmt: skip
        rows.append((values[0], "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows, reverse=True))])


def main() -> None:
    """Do the runs that are not done, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, and of the scenes")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS))
    parser.add_argument("--seconds", type=float, default=900.0, help="of a processor, each run")
    parser.add_argument("--scenes", type=int, default=200, help="a quarter of them for the test")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--overfit", type=Path, help="train on the frames of this KITTI tree instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    prefix = "overfit-" if args.overfit else ""
    wanted = [Run(name, args.seconds, args.lr, args.scenes, args.batch) for name in args.detectors]
    left = [run for run in wanted if not (args.out / f"{prefix}{run.detector}.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(left)} done before", flush=True)
    for run in left:
        if args.overfit:
            overfit(run, args.overfit, args.out)
        else:
            do(run, args.out)
    if not args.overfit:
        print(table(args.out))


if __name__ == "__main__":
    main()
