"""``scanweave video``: its networks, streaming, what it learns and writes, and how it resumes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scanweave.core import ConfigError, DataError
from scanweave.core.cli import main
from scanweave.core.storage import read_checkpoint
from scanweave.vision.video.cli import VIDEO
from scanweave.vision.video.clip import SPATIAL_FIRST, TEMPORAL_FIRST, ScanClipNetwork
from scanweave.vision.video.dataset import ClipInput
from scanweave.vision.video.encoder import FrameEncoder
from scanweave.vision.video.inception import TemporalInceptionNetwork
from scanweave.vision.video.layout import find_videos
from scanweave.vision.video.lrcn import LRCNNetwork
from scanweave.vision.video.models import LRCN
from scanweave.vision.video.module import VideoData
from scanweave.vision.video.motion import Motion
from scanweave.vision.video.motions import MOTIONS, moving_digits
from scanweave.vision.video.report import Timeline, draw_timeline
from scanweave.vision.video.streaming import score_over_time
from scanweave.vision.video.tslstm import TSLSTMNetwork
from scanweave.vision.video.videos import VideoFile

from .clips import COLOURS, turning, write_classes, write_video

TINY = {"patch_size": 8, "depth": 1, "embed_dim": 16}
COMMON = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"]
FRAMES = ["--model.backbone", "scanvit_tiny", "--model.backbone_options", json.dumps(TINY)]
SMALL = [*COMMON, "--data.img_size", "16", "--data.frames", "4", "--data.batch_size", "4"]


def run(*arguments: str) -> int:
    return main(["video", *arguments], {"video": replace(VIDEO, trusted=("tests.core.tiny.",))})


def fit(root: Path, out: Path, *options: str, epochs: int = 1) -> int:
    return run("fit", "--data.root", str(root), "--out", str(out), *SMALL, f"--trainer.max_epochs={epochs}", *options)


def encoder(in_chans: int = 3, grid: int = 1) -> FrameEncoder:
    torch.manual_seed(0)
    return FrameEncoder("scanvit_tiny", img_size=16, in_chans=in_chans, options=TINY, grid=grid)


# --- networks -----------------------------------------------------------------------------------------------------


def test_a_grid_keeps_the_places_of_a_frame() -> None:
    clips = torch.randn(2, 3, 3, 16, 16)
    assert encoder()(clips).shape == (2, 3, 16)
    placed = encoder(grid=2).eval()
    assert placed(clips).shape == (2, 3, 64)
    torch.testing.assert_close(placed(clips)[1, 2], placed(clips[1, 2][None])[0])
    with pytest.raises(ConfigError, match="did you mean"):
        FrameEncoder("scanvit_tyni", img_size=16)


@pytest.mark.parametrize("readout", ["average", "last", "pooled"])
@pytest.mark.parametrize("mixer", ["lstm", "mamba"])
def test_steps_give_what_the_whole_clip_gives_in_a_state_of_one_size(mixer: str, readout) -> None:
    network = LRCNNetwork(encoder(), 5, mixer=mixer, width=16, depth=2, mlp_ratio=2.0, readout=readout).eval()
    clips = torch.randn(2, 7, 3, 16, 16)
    per_frame = network.frame_logits(clips)
    state, sizes = None, set()
    for t in range(7):
        logits, so_far, state = network.step(clips[:, t], state)
        sizes.add(state.elements())
        torch.testing.assert_close(logits, per_frame[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(so_far, network(clips[:, : t + 1]), atol=1e-5, rtol=1e-4)
    assert len(sizes) == 1


@pytest.mark.parametrize("readout", ["average", "last", "pooled"])
def test_filling_does_not_change_a_shorter_clip(readout) -> None:
    network = LRCNNetwork(encoder(), 5, mixer="mingru", width=16, readout=readout).eval()
    clips = torch.randn(2, 6, 3, 16, 16)
    alone = network(clips[1:, :4])
    clips[1, 4:] = 9.0
    torch.testing.assert_close(network(clips, torch.tensor([6, 4]))[1:], alone)


def test_ts_lstm_by_its_equations() -> None:
    network = TSLSTMNetwork(encoder(), 5, segments=3, hidden=8).eval()
    features = torch.randn(2, 7, 16)
    pooled = [network.norm(part.flatten(0, 1)).unflatten(0, (2, -1)).amax(1) for part in features.split([3, 2, 2], 1)]
    h, c = torch.zeros(2, 8), torch.zeros(2, 8)
    for x in pooled:
        lstm = network.lstm
        gates = x @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    expected = network.head(network.hidden_norm(h))
    torch.testing.assert_close(network.classify(features), expected)
    with pytest.raises(ConfigError, match="segments is 3, and a clip has 2 frames"):
        network.classify(features[:, :2])


def test_temporal_inception_sees_as_far_as_its_kernels() -> None:
    network = TemporalInceptionNetwork(encoder(), 5, width=8, kernels=(3, 7), blocks=1, pool=1).eval()
    features = torch.zeros(1, 15, 16)
    changed = features.clone()
    changed[0, 7] = 1.0
    moved = (network.blocks(changed.mT) - network.blocks(features.mT)).abs()[0] > 0
    near, far = moved[:4].any(0), moved[4:].any(0)
    assert near.nonzero().flatten().tolist() == [6, 7, 8]
    assert far.nonzero().flatten().tolist() == list(range(4, 11))
    assert TemporalInceptionNetwork(encoder(), 5, width=8)(torch.randn(2, 5, 3, 16, 16)).shape == (2, 5)
    with pytest.raises(ConfigError, match="expected odd numbers"):
        TemporalInceptionNetwork(encoder(), 5, kernels=(2,))


@pytest.mark.parametrize("orders", [SPATIAL_FIRST, TEMPORAL_FIRST])
def test_clips_are_scanned_along_their_orders(orders: tuple[str, ...]) -> None:
    made = ScanClipNetwork(
        5, frames=4, img_size=16, tubelet=2, patch_size=8, width=16, depth=1, mixer="mingru", orders=orders[:1]
    ).eval()
    clips = torch.randn(1, 4, 3, 16, 16)
    assert made(clips).shape == (1, 5)
    tokens = made.embed(clips.transpose(1, 2)).movedim(1, -1)
    assert tokens.shape == (1, 2, 2, 2, 16)
    mixer = made.blocks[0].mixer
    changed = tokens.clone()
    changed[0, 1, 0, 0] += 1.0  # the first place of the second time: step 4 spatial first, step 1 temporal first
    moved = (mixer(changed) - mixer(tokens)).abs().amax(-1)[0] > 1e-7
    assert moved[0].any().item() == (orders is TEMPORAL_FIRST)
    with pytest.raises(ConfigError, match="no whole number of tubelets"):
        ScanClipNetwork(5, frames=5, img_size=16, tubelet=2, patch_size=8)


def test_two_streams_are_fused_late() -> None:
    task = LRCN(backbone="scanvit_tiny", backbone_options=TINY, mixer="mingru", width=16, motion_weight=0.25)
    inputs = ClipInput(16, frames=3, motion="flow").to_dict()
    task.set_context({"classes": ["a", "b"], "counts": [1, 1], "inputs": inputs})
    task.build()
    task.eval()
    batch = {"video": torch.randn(2, 3, 3, 16, 16), "motion": torch.randn(2, 3, 2, 16, 16)}
    logits = task(batch)
    expected = 0.75 * logits["video"].softmax(-1) + 0.25 * logits["motion"].softmax(-1)
    torch.testing.assert_close(task.fused(logits), expected)
    assert not torch.allclose(logits["video"], logits["motion"])


def test_flow_without_opencv_names_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr("scanweave.vision.video.motion.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install opencv-python-headless"):
        Motion("flow")


# --- scores over time ---------------------------------------------------------------------------------------------


def test_windows_overlap_by_a_half_and_short_videos_are_filled() -> None:
    seen = []

    class Probe(torch.nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            seen.append(clips[0, :, 0, 0, 0].tolist())
            return torch.tensor([[float(len(seen)), 0.0]])

    video = moving_digits()[0]
    inputs = ClipInput(32, "dense", frames=6, mean=(0, 0, 0), std=(1, 1, 1))
    scores = list(score_over_time({"video": Probe()}, video, inputs))
    assert [score.frame for score in scores] == [5, 8, 11, 14, 15]
    assert [float(score.so_far["video"][0]) for score in scores] == [1, 1.5, 2, 2.5, 3]
    assert all(len(window) == 6 for window in seen)
    short = list(score_over_time({"video": Probe()}, video, replace(inputs, frames=24)))
    assert [score.frame for score in short] == [15]


def test_streaming_gives_what_the_whole_clip_gives(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", turning(0, COLOURS["red"], 20))
    data = VideoData(str(path), img_size=16, frames=10, stride=2, sampling="whole", motion="difference")
    networks = {name: LRCNNetwork(encoder(), 3, mixer="mingru", width=16).eval() for name in ("video", "motion")}
    (video,) = find_videos(str(path), data.lists).videos
    with torch.inference_mode():
        *_, last = score_over_time(networks, video, data.inputs)
        clip = data.inputs.streams(data.inputs.centre(video.read(data.inputs.sampler().pick(len(video)))))
        for name, network in networks.items():
            torch.testing.assert_close(last.so_far[name], network(clip[name][None])[0], atol=1e-5, rtol=1e-4)
    assert last.frame == 18


def test_a_timeline_is_drawn(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 16)[:, None] * np.eye(8)[3] + 0.05
    line = Timeline(0, "digit 0", 8.0, np.arange(16), scores, scores.mean(0))
    path = draw_timeline(line, moving_digits()[0], MOTIONS, tmp_path / "timeline.png")
    assert path.stat().st_size > 20_000


# --- the command line ---------------------------------------------------------------------------------------------


def test_fit_test_and_predict(tmp_path: Path, capsys) -> None:
    root, out = write_classes(tmp_path / "videos"), tmp_path / "run"
    model = [*FRAMES, "--model.mixer", "mingru", "--model.width", "16", "--model.lr", "1e-2"]
    assert fit(root, out, *model, "--data.scale", "[0.8, 1]", epochs=8) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test/accuracy"] == 1.0
    assert {"test/f1", "test/auroc", "test/calibration_error", "val/loss"} <= set(metrics)
    assert list(pd.read_csv(out / "classes.csv")["videos"]) == [1, 1, 1]
    assert (out / "figures" / "confusion.png").stat().st_size > 10_000
    checkpoint = ["--out", str(out), "--ckpt_path", "best"]
    assert run("test", *checkpoint) == 0
    other = write_video(tmp_path / "long.mp4", [*turning(1, COLOURS["green"], 10), *turning(2, COLOURS["blue"], 10)])
    assert run("predict", *checkpoint, "--data.root", str(other)) == 0
    table = pd.read_csv(out / "predictions.csv")
    assert list(table["frame"]) == list(range(20))
    assert table["seconds"].iloc[-1] == pytest.approx(1.9)
    assert table["label"].iloc[0] == "green"
    assert np.allclose(table.filter(like="p(").sum(axis=1), 1, atol=1e-4)
    assert len(pd.read_csv(out / "videos.csv")) == 1
    assert (out / "figures" / "timeline_000.png").stat().st_size > 10_000
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.mp4").write_bytes(other.read_bytes())
    (tmp_path / "folder" / "bad.mp4").write_bytes(b"bad")
    capsys.readouterr()
    elsewhere = ["--data.root", str(tmp_path / "folder")]
    assert run("predict", *checkpoint, *elsewhere) == 1
    assert "bad.mp4: cannot be decoded" in capsys.readouterr().err
    assert run("predict", *checkpoint, *elsewhere, "--data.on_bad_sample", "skip") == 0
    assert list(pd.read_csv(out / "videos.csv")["video"]) == ["deep/a.mp4"]
    assert list(pd.read_csv(out / "skipped.csv")["video"]) == ["bad.mp4"]
    assert run("predict", *checkpoint, "--data.root", str(root / "red" / "frames")) == 0
    assert list(pd.read_csv(out / "videos.csv")["video"]) == ["frames"]


def test_videos_that_fail_late_are_left_out_where_that_is_asked(tmp_path: Path, monkeypatch, capsys) -> None:
    root, out = write_classes(tmp_path / "videos"), tmp_path / "run"
    assert fit(root, out, *FRAMES, "--model.mixer", "mingru", "--model.width", "16") == 0
    whole = VideoFile.all_frames

    def broken(self):
        for number, frame in enumerate(whole(self)):
            if number == 9 and self.name == "red/1.mp4":
                raise DataError("red/1.mp4: a hole")
            yield frame

    monkeypatch.setattr(VideoFile, "all_frames", broken)
    every = ["--out", str(out), "--ckpt_path", "last", "--data.root", str(root)]
    assert run("predict", *every) == 1
    assert "red/1.mp4: a hole" in capsys.readouterr().err
    assert run("predict", *every, "--data.on_bad_sample", "skip") == 0
    assert list(pd.read_csv(out / "skipped.csv")["video"]) == ["red/1.mp4"]
    assert len(pd.read_csv(out / "videos.csv")) == 14


@pytest.mark.parametrize(
    "model",
    [
        ["TSLSTM", *FRAMES, "--model.hidden", "8", "--data.motion", "difference"],
        ["TemporalInception", *FRAMES, "--model.width", "8", "--model.freeze", "true"],
        ["ScanClip", "--model.patch_size", "8", "--model.width", "16", "--model.depth", "1", "--model.mixer", "mingru"],
    ],
)
def test_the_other_models_fit_and_predict(tmp_path: Path, model: list[str]) -> None:
    root, out = write_classes(tmp_path / "videos", 4), tmp_path / "run"
    assert fit(root, out, "--model", *model) == 0
    assert run("predict", "--out", str(out), "--ckpt_path", "last", "--data.root", str(root / "red" / "0.mp4")) == 0
    table = pd.read_csv(out / "predictions.csv")
    assert list(table["frame"]) == [3, 5, 7, 9, 11]


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "videos", 5)
    options = [*FRAMES, "--model.mixer", "mingru", "--model.width", "16"]
    options += ["--model.dropout", "0.2", "--model.ema", "0.9", "--model.schedule", "constant"]
    stop = ["--trainer.callbacks", "tests.core.tiny.Signal", "--trainer.callbacks.number", "15"]
    assert fit(root, tmp_path / "a", *options, *stop, "--trainer.callbacks.batch", "2", epochs=3) == 128 + 15
    again = ["--out", str(tmp_path / "a"), "--ckpt_path", "last", "--trainer.callbacks", "null"]
    assert run("fit", *again) == 0
    assert fit(root, tmp_path / "b", *options, epochs=3) == 0
    one, other = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("a", "b"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_wrong_settings_are_refused_by_name(tmp_path: Path, capsys) -> None:
    root = write_classes(tmp_path / "videos", 3)
    for options, said in (
        (["--model", "TSLSTM", *FRAMES, "--data.sampling", "whole"], "TSLSTM sees clips of one length"),
        ([*FRAMES, "--model.mixer", "mabma"], "there is no mixer 'mabma' (did you mean 'mamba'?)"),
        ([*FRAMES, "--model.motion_weight", "2"], "--model.motion_weight is 2.0"),
        ([*FRAMES, "--data.scale", "[0.5, 2]"], "--data.scale is [0.5, 2.0]"),
    ):
        assert fit(root, tmp_path / "run", *options) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "folder_small", "clip_small", "lrcn", "tslstm", "inception"])
def test_the_packaged_configurations(tmp_path: Path, name: str) -> None:
    few = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    # What stands later prevails.
    quick = ["--config", f"vision/video_{name}", *COMMON, *few, "--trainer.max_epochs=1", "--data.batch_size=2"]
    quick += ["--model.warmup_epochs", "0"]
    if name != "digits":
        root = write_classes(tmp_path / "videos", 4)
        quick += ["--data.root", str(root), "--data.img_size", "32", "--data.frames", "4"]
    if name in ("tslstm", "inception"):
        quick += ["--model.backbone", "resnet10t"]
    assert run("fit", *quick, "--out", str(tmp_path / "run")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["mingru", "gla", "mamba"])
def test_motions_are_learned_from_the_order_of_the_frames(tmp_path: Path, mixer: str) -> None:
    options = ["--config", "vision/video_digits", *COMMON, "--model.mixer", mixer, "--out", str(tmp_path)]
    assert run("fit", *options) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["test/accuracy"] >= 0.95
    task = LRCN.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt", weights_only=True).eval()
    data = VideoData(num_workers=0)
    data.setup("fit")
    right = total = 0
    generator = torch.Generator().manual_seed(0)
    for batch in data.test_dataloader():
        for clip, target in zip(batch["video"], batch["target"], strict=True):
            shuffled = clip[torch.randperm(len(clip), generator=generator)]
            right += int(task.model["video"](shuffled[None]).argmax() == target)
            total += 1
    # Eight classes that the set of frames does not tell: chance is an eighth.
    assert right / total < 0.25
