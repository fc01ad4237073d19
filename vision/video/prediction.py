"""Prediction of frames under the shared training: its data and its task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError, MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from ...core.errors import ConfigError, DataError
from ...core.plots import MUTED, new_figure, save_figure
from ...core.sampler import evaluation_loader, train_loader
from ...core.storage import atomic_file
from ...core.task import Stage, Task
from .layout import ListOptions, find_videos
from .moving import MovingDigits, digit_images
from .predictor import FramePredictor
from .videos import Video

_SHOWN, _COLUMNS = 3, 12
_GIF_SCALE = 3


class PredictionData(pl.LightningDataModule):
    """Clips of moving digits; ``predict`` also takes videos.

    Args:
        root: For ``predict`` alone: a video, or a folder of some, whose first frames are gone on from, in grey;
            without it, the test clips are.
        mnist: Folder of torchvision's MNIST, already fetched; by default scikit-learn's digits.
        size: Side of a frame, pixels, a multiple of 4.
        digits: Digits in a clip.
        frames: Frames of a training clip.
        context: Frames that are known in validation, test and prediction.
        horizons: Counts of predicted frames, over which metrics are averaged; the largest is how many are predicted.
        train_clips: Training clips of an epoch, others in each.
        val_clips: Validation clips.
        test_clips: Test clips.
        seed: Seed of the clips.
        batch_size: Clips per optimiser step, over all processes.
        num_workers: Processes that make clips.
    """

    def __init__(
        self,
        root: str | None = None,
        mnist: str | None = None,
        size: int = 64,
        digits: int = 2,
        frames: int = 20,
        context: int = 10,
        horizons: list[int] | None = None,
        train_clips: int = 1000,
        val_clips: int = 100,
        test_clips: int = 100,
        seed: int = 0,
        batch_size: int = 8,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        if size < 28 or size % 4:
            raise ConfigError(f"--data.size is {size}; expected a multiple of 4, at least 28")
        if frames < 2 or context < 1 or min(horizons or [1]) < 1:
            raise ConfigError(
                f"--data.frames is {frames}, --data.context {context} and --data.horizons {horizons}; expected at "
                "least 2, 1 and 1"
            )
        self.root, self.mnist = root, mnist
        self.size, self.digits, self.frames = size, digits, frames
        self.known, self.horizons = context, sorted(horizons or [10])
        self.counts = {"train": train_clips, "val": val_clips, "test": test_clips}
        self.seed, self.batch_size, self.num_workers = seed, batch_size, num_workers
        self._images: dict[str, Tensor] = {}
        self._videos: Sequence[Video] = ()

    def setup(self, stage: str | None = None) -> None:
        """Read the digits, or list the videos to go on from."""
        if self.root is not None and stage == "predict":
            self._videos = find_videos(self.root, ListOptions()).videos
        elif self.root is not None:
            raise ConfigError(
                f"--data.root is {self.root}: clips to train and to test on are made of digits, and root is for "
                "predict; a folder of MNIST is named by --data.mnist"
            )
        elif not self._images:
            self._images = {part: digit_images(part, self.mnist) for part in ("train", "val", "test")}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return clips made anew in each epoch."""
        made = MovingDigits(self._images["train"], self.counts["train"], self.frames, self.size, self.digits)
        return train_loader(made, self.batch_size, seed=self.seed, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation clips, always the same."""
        return self._clips("val", self.known + self.horizons[0], 1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test clips, always the same."""
        return self._clips("test", self.known + self.horizons[-1], 2)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the known frames of the videos, or of the test clips."""
        if not self._videos:
            return self._clips("test", self.known, 2)
        return evaluation_loader(_Openings(self._videos, self.known, self.size), 1)

    def called(self, index: int) -> str:
        """Return a name for a clip that was predicted."""
        return Path(self._videos[index].name).stem if self._videos else f"clip_{index:04d}"

    def _clips(self, part: str, frames: int, key: int) -> DataLoader[Any]:
        # Seeds that differ between the parts; numbers of clips are below a million.
        seed = 1_000_003 * self.seed + key
        made = MovingDigits(self._images[part], self.counts[part], frames, self.size, self.digits, seed)
        return evaluation_loader(made, self.batch_size, num_workers=self.num_workers)


class _Openings(Dataset[Any]):
    """The first frames of videos, in grey, cut to a square."""

    def __init__(self, videos: Sequence[Video], frames: int, size: int) -> None:
        self.videos, self.frames, self.size = videos, frames, size

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video = self.videos[index]
        if len(video) < self.frames:
            raise DataError(f"{video.name}: has {len(video)} frames, expected at least --data.context {self.frames}")
        frames = torch.from_numpy(video.read(range(self.frames))).float().mean(-1)[:, None] / 255
        side = min(frames.shape[-2:])
        top, left = ((length - side) // 2 for length in frames.shape[-2:])
        square = frames[..., top : top + side, left : left + side]
        return {"video": F.interpolate(square, (self.size, self.size), mode="area"), "index": index}


class VideoPrediction(Task):
    """Predict the frames that follow, by any mixer of clips.

    Trains on all frames of a clip at once, each predicted from the true ones before it; a test goes on from the known
    frames with its own. Reports MSE (mean over pixels), MAE and SSIM, means over the first h predicted frames for
    each horizon h, and the PSNR of that MSE; draws truth above prediction, as strips and as GIFs.

    Args:
        mixer: ``convs5``, ``convlstm``, or any registered mixer of clips.
        mixer_options: The mixer's own arguments.
        width: Features of a map.
        depth: Layers.
        loss: ``bce``, the cross-entropy of each pixel, or ``mse``.
        lr: Learning rate.
        weight_decay: Decay of matrices.
        options: The shared training's other arguments.

    Source:
        Smith et al., Convolutional state space models for long-range spatiotemporal modeling (2023); Shi et al.,
        Convolutional LSTM network (2015); the cross-entropy: Srivastava et al. (2015), section 3.1.
    """

    def __init__(
        self,
        mixer: str = "convs5",
        mixer_options: dict[str, Any] | None = None,
        width: int = 64,
        depth: int = 4,
        loss: Literal["bce", "mse"] = "bce",
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, **options)
        self.mixer, self.mixer_options = mixer, dict(mixer_options or {})
        self.width, self.depth, self.loss = width, depth, loss
        self._shown: list[tuple[np.ndarray, np.ndarray]] = []
        self._generated: dict[str, Any] = {}

    def configure_models(self) -> None:
        self.model = FramePredictor(self.mixer, self.mixer_options, width=self.width, depth=self.depth)

    def configure_metrics(self) -> None:
        self.set_metrics({})

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        video = batch["video"]
        logits, _ = self.model(video[:, :-1])
        if stage == "test":
            self._measure(video)
        if self.loss == "mse":
            return F.mse_loss(logits.float().sigmoid(), video[:, 1:])
        return F.binary_cross_entropy_with_logits(logits.float(), video[:, 1:])

    def _measure(self, video: Tensor) -> None:
        known, horizons = self._data.known, self._data.horizons
        made, truth = self._network.generate(video[:, :known], horizons[-1]).float(), video[:, known:]
        for horizon in horizons:
            frames = [clip[:, :horizon].flatten(0, 1).contiguous() for clip in (made, truth)]
            for name in ("mse", "mae", "ssim", "psnr"):
                self._generated[f"{name}_{horizon}"].update(*frames)
        for clip, own in zip(video, made, strict=True):
            if len(self._shown) < _SHOWN:
                own = torch.cat((clip[:known], own.to(clip)))
                self._shown.append((clip.cpu().numpy()[:, 0], own.cpu().numpy()[:, 0]))

    def on_test_start(self) -> None:
        self._shown = []
        made: dict[str, Any] = {}
        for horizon in self._data.horizons:
            made |= {
                f"mse_{horizon}": MeanSquaredError(),
                f"mae_{horizon}": MeanAbsoluteError(),
                f"ssim_{horizon}": StructuralSimilarityIndexMeasure(data_range=1.0),
                f"psnr_{horizon}": PeakSignalNoiseRatio(data_range=1.0),
            }
        self._generated = {name: metric.to(self.device) for name, metric in made.items()}

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": metric.compute() for name, metric in self._generated.items()})

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        known = batch["video"]
        made = self._network.generate(known, self._data.horizons[-1])
        return {"index": batch["index"].cpu(), "video": torch.cat((known, made.to(known)), 1).float().cpu()}

    # --- what a run writes ----------------------------------------------------------------------------------------

    def draw(self, folder: Path) -> list[Path]:
        drawn = []
        for number, (truth, made) in enumerate(self._shown):
            drawn.append(draw_strip(truth, made, self._data.known, folder / f"strip_{number}.png"))
            both = np.concatenate((truth, np.ones_like(truth[..., :2]), made), -1)
            drawn.append(write_gif(both, folder / f"clip_{number}.gif"))
        return drawn

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write each clip, its known frames and those predicted, as ``predictions/NAME.npy`` (T, H, W) and .gif."""
        target = folder / "predictions"
        for output in outputs:
            for index, clip in zip(output["index"].tolist(), output["video"].numpy(), strict=True):
                name = self._data.called(index)
                with atomic_file(target / f"{name}.npy") as file:
                    np.save(file, clip[:, 0])
                write_gif(clip[:, 0], target / f"{name}.gif")
        return target

    @property
    def _network(self) -> FramePredictor:
        return cast(FramePredictor, self.model)

    @property
    def _data(self) -> PredictionData:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PredictionData):
            raise ConfigError(f"{type(self).__name__} reads its horizons from a PredictionData module; pass one")
        return data


def draw_strip(truth: np.ndarray, made: np.ndarray, known: int, path: Path) -> Path:
    """Draw a clip above what a model made of it; the known frames and twelve of the others, evenly chosen.

    Args:
        truth: (T, H, W) in [0, 1].
        made: (T, H, W): the first ``known`` as in truth, the others predicted.
        known: How many frames were known.
        path: The PNG to write.

    Returns:
        The file.
    """
    shown = np.unique(np.linspace(known, len(truth) - 1, _COLUMNS).round().astype(int))
    columns = [max(0, known - 3), known - 1, *shown.tolist()]
    figure, axes = new_figure(1.0 * len(columns), 2.4, rows=2, columns=len(columns))
    for row, (clip, name) in enumerate(((truth, "truth"), (made, "prediction"))):
        for place, t in enumerate(columns):
            ax = axes[row * len(columns) + place]
            ax.imshow(clip[t], cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            if row == 0:
                ax.set_title(f"{t - known + 1:+d}", fontsize=9, color=MUTED)
            if place == 0:
                ax.set_ylabel(name, fontsize=9)
    return save_figure(figure, path)


def write_gif(clip: np.ndarray, path: Path, milliseconds: int = 120) -> Path:
    """Write a clip (T, H, W) in [0, 1] as a GIF that repeats, three times as large."""
    frames = []
    for frame in clip:
        image = Image.fromarray((255 * np.clip(frame, 0, 1)).round().astype(np.uint8))
        frames.append(image.resize((_GIF_SCALE * image.width, _GIF_SCALE * image.height), Image.Resampling.NEAREST))
    with atomic_file(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return path
