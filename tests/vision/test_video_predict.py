"""``scanweave video-predict``: how digits move, what a predictor sees, what runs write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scanweave.core import ConfigError, DataError
from scanweave.core.cli import main
from scanweave.core.storage import read_checkpoint
from scanweave.vision.video import FramePredictor
from scanweave.vision.video.moving import SIDE, SPEED, MovingDigits, bounce, digit_images, moving_clip
from scanweave.vision.video.prediction_cli import VIDEO_PREDICT

from .clips import turning, write_video

COMMON = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"]
TINY = ["--data.size", "32", "--data.frames", "5", "--data.context", "3", "--data.batch_size", "4"]
TINY += ["--data.train_clips", "16", "--data.val_clips", "4", "--data.test_clips", "5"]
NET = ["--model.width", "8", "--model.depth", "1"]


def run(*arguments: str) -> int:
    return main(["video-predict", *arguments], {"video-predict": replace(VIDEO_PREDICT, trusted=("tests.core.tiny.",))})


def fit(out: Path, *options: str) -> int:
    return run("fit", *COMMON, *TINY, *NET, "--out", str(out), *options)


# --- moving digits ------------------------------------------------------------------------------------------------


def test_points_fly_straight_and_bounce() -> None:
    assert bounce(np.array(0.5), np.array(0.2), 9) == pytest.approx([0.5, 0.7, 0.9, 0.9, 0.7, 0.5, 0.3, 0.1, 0.1])
    generator = np.random.default_rng(0)
    start, step = generator.uniform(0, 1, 50), generator.uniform(-0.1, 0.1, 50)
    places = bounce(start, step, 200)
    assert places.shape == (200, 50)
    assert ((places >= 0) & (places <= 1)).all()
    ways = np.abs(np.diff(places, axis=0))
    assert (ways <= np.abs(step) + 1e-12).all()
    assert (np.isclose(ways, np.abs(step)).mean(0) > 0.75).all()


def test_a_clip_holds_whole_digits_that_move() -> None:
    images = torch.ones(1, SIDE, SIDE)
    clip = moving_clip(images, np.random.default_rng(3), 30, 64, digits=1)
    assert clip.shape == (30, 1, 64, 64)
    assert (clip.sum((1, 2, 3)) == SIDE**2).all()
    rows = torch.stack([frame.any(1).nonzero()[0, 0] for frame in clip[:, 0]]).float()
    columns = torch.stack([frame.any(0).nonzero()[0, 0] for frame in clip[:, 0]]).float()
    far = torch.hypot(rows.diff(), columns.diff())
    assert far.max() <= SPEED * (64 - SIDE) + 1.5
    assert moving_clip(images, np.random.default_rng(3), 30, 64, digits=2).sum(dim=(1, 2, 3)).max() <= 2 * SIDE**2


def test_clips_follow_their_seed_and_training_clips_the_generator() -> None:
    images = digit_images("test")
    made = MovingDigits(images, 10, 6, seed=1)
    assert torch.equal(made[3]["video"], MovingDigits(images, 10, 9, seed=1)[3]["video"][:6])
    assert not torch.equal(made[3]["video"], made[4]["video"])
    fresh = MovingDigits(images, 10, 6)
    torch.manual_seed(0)
    first, second = fresh[0]["video"], fresh[0]["video"]
    torch.manual_seed(0)
    assert torch.equal(first, fresh[0]["video"])
    assert not torch.equal(first, second)


def test_no_digit_is_in_two_parts(tmp_path: Path) -> None:
    parts = [digit_images(part) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == 1797
    assert all(part.shape[1:] == (28, 28) and part.min() >= 0 and part.max() <= 1 for part in parts)
    with pytest.raises(DataError, match=r"holds no MNIST .*download=True"):
        digit_images("train", str(tmp_path))


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["convs5", "convlstm"])
def test_frame_by_frame_gives_what_all_at_once_gives(mixer: str) -> None:
    torch.manual_seed(0)
    network = FramePredictor(mixer, width=8, depth=2).eval()
    video = torch.rand(2, 6, 1, 16, 16)
    whole, _ = network(video)
    states, sizes = None, set()
    for t in range(6):
        logits, states = network(video[:, t : t + 1], states)
        torch.testing.assert_close(logits[:, 0], whole[:, t], atol=1e-5, rtol=1e-4)
        sizes.add(sum(part.numel() for state in states for part in state))
    assert len(sizes) == 1
    made = network.generate(video, 3)
    assert made.shape == (2, 3, 1, 16, 16)
    torch.testing.assert_close(made[:, 0], whole[:, -1].sigmoid(), atol=1e-5, rtol=1e-4)
    again, _ = network(torch.cat((video, made[:, :1]), 1))
    torch.testing.assert_close(made[:, 1], again[:, -1].sigmoid(), atol=1e-5, rtol=1e-4)
    changed = video.clone()
    changed[:, 4] += 1
    assert torch.equal(network(changed)[0][:, :4], whole[:, :4])  # no frame sees those after it
    with pytest.raises(ConfigError, match="18 x 16 pixels, expected multiples of 4"):
        network(torch.rand(1, 2, 1, 18, 16))
    with pytest.raises(ValueError, match="frames is 0"):
        network.generate(video, 0)


# --- the command line ---------------------------------------------------------------------------------------------


def test_fit_test_and_predict(tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert fit(out, "--trainer.max_epochs", "2", "--data.horizons", "[2]") == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert {f"test/{name}_2" for name in ("mse", "mae", "ssim", "psnr")} <= set(metrics)
    assert -10 * np.log10(metrics["test/mse_2"]) == pytest.approx(metrics["test/psnr_2"], rel=1e-4)
    assert {path.name for path in (out / "figures").iterdir()} == {
        "training.png", *(f"{kind}_{i}.{end}" for i in range(3) for kind, end in (("strip", "png"), ("clip", "gif"))),
    }  # fmt: skip
    with Image.open(out / "figures" / "clip_0.gif") as gif:
        assert 2 <= gif.n_frames <= 3 + 2  # Pillow joins frames that are alike
    # Another horizon than the one trained with.
    checkpoint = ["--out", str(out), "--ckpt_path", "last"]
    assert run("test", *checkpoint, "--data.horizons", "[1, 6]") == 0
    later = json.loads((out / "metrics.json").read_text())
    assert {"test/ssim_1", "test/ssim_6"} <= set(later)
    assert run("predict", *checkpoint) == 0
    assert len(list((out / "predictions").glob("*.npy"))) == 5
    video = write_video(tmp_path / "a.mp4", turning(0, (90, 90, 90), 6))
    assert run("predict", *checkpoint, "--data.root", str(video), "--data.horizons", "[4]") == 0
    clip = np.load(out / "predictions" / "a.npy")
    assert clip.shape == (3 + 4, 32, 32)
    assert 0 <= clip.min() <= clip.max() <= 1
    assert run("predict", *checkpoint, "--data.root", str(video), "--data.context", "9") == 1
    assert "a.mp4: has 6 frames, expected at least --data.context 9" in capsys.readouterr().err
    assert run("fit", *COMMON, "--out", str(tmp_path / "no"), "--data.root", str(video)) == 1
    assert "a folder of MNIST is named by --data.mnist" in capsys.readouterr().err


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs", "2", "--model.mixer", "convlstm"]
    stop = ["--trainer.callbacks", "tests.core.tiny.Signal", "--trainer.callbacks.number", "15"]
    assert fit(tmp_path / "a", *options, *stop, "--trainer.callbacks.batch", "5") == 128 + 15
    assert run("fit", "--out", str(tmp_path / "a"), "--ckpt_path", "last", "--trainer.callbacks", "null") == 0
    assert fit(tmp_path / "b", *options) == 0
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("a", "b"))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["convs5", "convlstm", "convs5_small", "convlstm_small"])
def test_the_packaged_configurations(tmp_path: Path, name: str) -> None:
    quick = ["--config", f"vision/video_predict_{name}", *COMMON, *TINY, *NET, "--data.horizons", "[2]"]
    few = ["--trainer.max_epochs", "1", "--model.warmup_epochs", "0"]
    assert run("fit", *quick, *few, "--out", str(tmp_path / "run")) == 0


def test_wrong_settings_are_named(tmp_path: Path, capsys) -> None:
    for options, said in (
        (["--model.mixer", "convs6"], "did you mean 'convs5'?"),
        (["--model.mixer", "mamba"], "mamba"),
        (["--data.size", "30"], "--data.size is 30; expected a multiple of 4, at least 28"),
        (["--data.horizons", "[0]"], "--data.horizons [0]; expected at least 2, 1 and 1"),
    ):
        assert fit(tmp_path / "run", *options) in (1, 2)
        assert said in capsys.readouterr().err
