"""Videos read, sampled, found and divided; what is damaged is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from scanweave.core import ConfigError, DataError
from scanweave.vision.video.dataset import ClipAugmentation, ClipInput
from scanweave.vision.video.decode import read_frames, read_index, stream_frames
from scanweave.vision.video.layout import ListOptions, find_labelled_videos, find_videos
from scanweave.vision.video.module import VideoData
from scanweave.vision.video.motion import motion_of
from scanweave.vision.video.motions import FRAMES, MOTIONS, moving_digits
from scanweave.vision.video.sampling import Sampling
from scanweave.vision.video.videos import open_video

from .clips import COLOURS, gradient, turning, write_classes, write_frames, write_video


def number_of(frame: np.ndarray) -> int:
    """Return the number that a frame of ``gradient`` tells."""
    return round((float(frame[:16].mean()) - 16) / 8)


# --- decoding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "mpeg4"), ("avi", "mpeg4"), ("mkv", "mpeg4"), ("mov", "libx264")]
)
def test_chosen_frames_are_those_of_a_sequential_read(tmp_path: Path, ending: str, codec: str) -> None:
    path = write_video(tmp_path / f"a.{ending}", gradient(27), codec=codec)
    index = read_index(path)
    assert index.frames == 27
    assert index.fps == 10
    assert (len(index.keys) > 2) == (ending != "avi")
    all_frames = list(stream_frames(path))
    assert [number_of(frame) for frame in all_frames] == list(range(27))
    for numbers in ([0], [26], [3, 4, 20], [25, 2, 2, 13], list(range(27))):
        found = read_frames(path, numbers)
        assert all(np.array_equal(frame, all_frames[n]) for frame, n in zip(found, numbers, strict=True))
    with pytest.raises(DataError, match="found 27 frames"):
        read_frames(path, [27])


def test_a_jump_spares_the_frames_between(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", gradient(40), gop=10)
    turned = []
    monkeypatch.setattr("scanweave.vision.video.decode._pixels", lambda frame: turned.append(frame.pts) or np.zeros(1))
    read_frames(path, [1, 31])
    index = read_index(path)
    assert [index.times.index(pts) for pts in turned] == [1, 31]
    assert max(index.keys) > index.times[20]


def test_a_rotated_video_stands_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gradient(4))
    upright = list(stream_frames(path))[3]
    content = bytearray(path.read_bytes())
    # The track's display matrix: 40 bytes behind its header's type, here for a quarter turn clockwise.
    at = content.index(b"tkhd") + 4 + 40
    one = 0x10000
    matrix = (0, one, 0, -one & 0xFFFFFFFF, 0, 0, 0, 0, 0x40000000)
    content[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path.write_bytes(content)
    turned = read_frames(path, [3])[0]
    assert turned.shape == (64, 48, 3)
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_damaged_files_are_refused_by_name(tmp_path: Path, data_path) -> None:
    whole = write_video(tmp_path / "whole.avi", turning(0, (90, 90, 90), 40))
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    no_end = tmp_path / "no_end.mp4"
    no_end.write_bytes(write_video(tmp_path / "b.mp4", gradient(9)).read_bytes()[:-200])
    text = tmp_path / "text.mp4"
    text.write_text("<html>not found</html>")
    for path, said in (
        (cut, "truncated, found"), (empty, "the file is empty"), (no_end, "found 0 frames"),
        (text, "cannot be decoded"), (tmp_path / "none.mp4", "there is no such file"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said) as caught:
            read_frames(path, [0])
        assert path.name in str(caught.value)
    # Some versions of FFmpeg open a file without frames, others do not.
    with pytest.raises(DataError, match=r"zero\.mkv: (found 0 frames|cannot be decoded)"):
        read_index(_without_frames(tmp_path / "zero.mkv"))
    with pytest.raises(DataError, match=r"decord__corrupted\.mp4: cannot be decoded"):
        list(stream_frames(data_path("video/decord__corrupted.mp4")))


def _without_frames(path: Path) -> Path:
    """Write a video with a header and no frame in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    return path


def test_real_files_and_folders(data_path) -> None:
    root = data_path("video")
    for name, frames in (("C3D__v_ApplyEyeMakeup_g01_c01.avi", 164), ("mmaction2__part_0.mp4", 32)):
        video = open_video(root / name, name)
        assert len(video) == frames
        every = list(video.frames())
        assert len(every) == frames
        chosen = [0, frames // 2, frames - 1]
        assert all(np.array_equal(a, every[n]) for a, n in zip(video.read(chosen), chosen, strict=True))
    folder = open_video(root / "raivokoot_rawframes" / "jumping" / "0001", "0001", first=2, last=5)
    assert len(folder) == 4
    assert np.array_equal(folder.read([1])[0], list(folder.frames())[1])


def test_frames_in_a_folder_go_by_their_numbers(tmp_path: Path) -> None:
    video = open_video(write_frames(tmp_path / "v", gradient(12)), "v")
    assert [number_of(frame) for frame in video.frames()] == list(range(12))
    with pytest.raises(DataError, match="listed are the frames 4 to 20, found 12"):
        len(open_video(tmp_path / "v", "v", first=4, last=20))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="found 0 frames"):
        len(open_video(tmp_path / "none", "none"))


# --- sampling -----------------------------------------------------------------------------------------------------


def test_segments_take_one_frame_of_each_part() -> None:
    assert Sampling("segments", 4).pick(8).tolist() == [1, 3, 5, 7]
    assert Sampling("segments", 4).pick(2).tolist() == [0, 0, 1, 1]
    generator = np.random.default_rng(0)
    drawn = np.stack([Sampling("segments", 4).pick(40, generator) for _ in range(200)])
    assert (drawn // 10 == np.arange(4)).all()
    assert {*drawn[:, 0].tolist()} == set(range(10))


def test_dense_and_whole_clips_take_neighbours() -> None:
    assert Sampling("dense", 4, 2).pick(11).tolist() == [2, 4, 6, 8]
    assert Sampling("dense", 4).pick(2).tolist() == [0, 1, 1, 1]
    generator = np.random.default_rng(0)
    assert {int(Sampling("dense", 4, 2).pick(10, generator)[0]) for _ in range(99)} == {0, 1, 2, 3}
    assert Sampling("whole", 5, 2).pick(6).tolist() == [0, 2, 4]
    assert Sampling("whole", 3, 2).pick(60).tolist() == [0, 2, 4]
    for wrong in ({"kind": "some"}, {"frames": 0}, {"stride": 0}):
        with pytest.raises(ConfigError, match=r"--data\."):
            Sampling(**wrong)


def test_augmentation_treats_all_frames_alike() -> None:
    frames = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 40, 60, 3), dtype=np.uint8), 3, 0)
    changed = ClipAugmentation((0.2, 0.5), 0.5).apply(frames, 16)
    assert changed.shape == (3, 16, 16, 3)
    assert np.array_equal(changed[0], changed[2])
    mirrored = ClipAugmentation((1.0, 1.0), 1.0).apply(frames[:, :, :40], 40)
    assert np.array_equal(mirrored, frames[:, :, :40][:, :, ::-1])


@pytest.mark.parametrize("kind", ["difference", "flow"])
def test_motion_tells_where_things_move(kind) -> None:
    if kind == "flow":
        pytest.importorskip("cv2")
    texture = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    still = np.pad(texture, 16)
    frames = np.stack([np.roll(still, 2 * t, 1) for t in range(3)])[..., None].repeat(3, -1)
    motion = motion_of(frames, kind)
    assert motion.shape == (3, 64, 64, 3 if kind == "difference" else 2)
    assert not motion[0].any()
    if kind == "difference":
        assert np.allclose(motion[1], (frames[1].astype(float) - frames[0]) / 255)
    else:
        inside = motion[2, 24:40, 28:44].mean((0, 1)) * 20
        assert inside == pytest.approx([2, 0], abs=0.3)


# --- finding and dividing -----------------------------------------------------------------------------------------


def test_default_motions_differ_in_the_order_of_their_frames_alone() -> None:
    digits = moving_digits()
    assert {video.label for video in digits} == set(MOTIONS)
    one = digits[5]
    frames = one.read(range(FRAMES))
    for motion in range(len(MOTIONS)):
        one.motion = motion
        other = one.read(range(FRAMES))
        assert {frame.tobytes() for frame in other} == {frame.tobytes() for frame in frames}
    assert len({frame.tobytes() for frame in frames}) == FRAMES


def test_csv_lists_name_parts_and_frames(tmp_path: Path) -> None:
    write_frames(tmp_path / "v" / "1", gradient(12))
    write_video(tmp_path / "v" / "2.mp4", gradient(6))
    (tmp_path / "a.csv").write_text("video,label,start,end,split\nv/1,x,2,5,train\nv/2.mp4,y,,,test\n")
    parts = find_labelled_videos(str(tmp_path / "a.csv"), ListOptions())
    assert {part: videos.labels for part, videos in parts.items()} == {"train": ["x"], "test": ["y"]}
    assert [number_of(frame) for frame in parts["train"].videos[0].frames()] == [1, 2, 3, 4]
    for text, said in (
        ("video,label\nv/3,x\n", "row 2, column 'video'.*no file"), ("video,label\nv/1,\n", "row 2, column 'label'"),
        ("video,label,start\nv/1,x,zero\n", "row 2, column 'start'"), ("clip,label\nv/1,x\n", "no column of paths"),
        ("video,label,split\nv/1,x,some\n", "row 2, column 'split'"),
    ):  # fmt: skip
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(DataError, match=said):
            find_labelled_videos(str(tmp_path / "b.csv"), ListOptions())
    assert [video.name for video in find_videos(str(tmp_path), ListOptions()).videos] == ["v/1", "v/2.mp4"]


def test_official_splits(tmp_path: Path) -> None:
    for name in ("A/v_1.avi", "A/v_2.avi", "B/v_1.avi"):
        write_video(tmp_path / "ucf" / name, gradient(2))
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "trainlist01.txt").write_text("A/v_1.avi 1\nB/v_1.avi 2\n")
    (splits / "testlist01.txt").write_text("A/v_2.avi\n")
    options = ListOptions(splits=str(splits))
    parts = find_labelled_videos(str(tmp_path / "ucf"), options)
    assert [video.name for video in parts["train"].videos] == ["A/v_1.avi", "B/v_1.avi"]
    assert parts["test"].labels == ["A"]
    (splits / "A_test_split2.txt").write_text("v_1.avi 1 \nv_2.avi 2 \n")
    (splits / "B_test_split2.txt").write_text("v_1.avi 0 \n")
    parts = find_labelled_videos(str(tmp_path / "ucf"), ListOptions(splits=str(splits), split=2))
    assert {part: [v.name for v in videos.videos] for part, videos in parts.items()} == {
        "train": ["A/v_1.avi"],
        "test": ["A/v_2.avi"],
    }
    with pytest.raises(DataError, match="neither trainlist03"):
        find_labelled_videos(str(tmp_path / "ucf"), ListOptions(splits=str(splits), split=3))
    (splits / "trainlist01.txt").write_text("A/v_9.avi 1\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt:1: A/v_9\.avi: there is no file"):
        find_labelled_videos(str(tmp_path / "ucf"), options)


def test_class_folders_of_files_and_of_frames(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "videos")
    data = VideoData(str(root), img_size=16, frames=4, num_workers=0, batch_size=3)
    assert data.context()["classes"] == list(COLOURS)
    assert [len(data.videos(part)) for part in ("train", "val", "test")] == [9, 3, 3]
    batch = next(iter(data.val_dataloader()))
    assert batch["video"].shape == (3, 4, 3, 16, 16)
    assert batch["length"].tolist() == [4, 4, 4]
    again = [batch for loader in (data.train_dataloader(), data.train_dataloader()) for batch in loader]
    assert torch.equal(again[0]["video"], again[3]["video"])  # the same seed and epoch
    later = data.train_dataloader()
    later.batch_sampler.set_epoch(1)
    assert not torch.equal(next(iter(later))["video"], again[0]["video"])
    write_video(root / "loose.mp4", gradient(2))
    with pytest.raises(DataError, match=r"found 'loose\.mp4' \(1 such\) outside"):
        VideoData(str(root)).setup("fit")
    (root / "loose.mp4").rename(root / "notes.txt")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="no video in the class folders empty"):
        VideoData(str(root)).setup("fit")


def test_bad_videos_are_met_with_an_error_or_left_out_and_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "videos")
    (root / "red" / "0.mp4").write_bytes(b"nothing")
    raising = VideoData(str(root), img_size=16, frames=2, num_workers=0, val_share=0.4, test_share=0.4)
    raising.setup("fit")
    loaders = [raising.train_dataloader(), raising.val_dataloader(), raising.test_dataloader()]
    with pytest.raises(DataError, match=r"0\.mp4: cannot be decoded"):
        list(itertools.chain(*loaders))
    data = VideoData(str(root), img_size=16, frames=2, on_bad_sample="skip")
    data.setup("fit")
    assert list(data.skipped) == ["red/0.mp4"]
    assert sum(len(data.videos(part)) for part in ("train", "val", "test")) == 14


def test_a_model_refuses_clips_that_would_look_different(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "videos")
    data = VideoData(str(root), img_size=16, frames=4)
    data.setup("fit")
    state = data.state_dict()
    with pytest.raises(ConfigError, match=r"--data\.frames 4; .* with 5"):
        VideoData(str(root), frames=5).load_state_dict(state)
    same = VideoData(str(root), frames=4)
    same.load_state_dict(state)
    assert same.inputs.img_size == 16
    (root / "red" / "0.mp4").unlink()
    with pytest.raises(DataError, match="learnt from would count as unseen"):
        same.setup("test")
    assert ClipInput(**data.context()["inputs"]) == data.inputs
    assert data.context()["counts"] == [3, 3, 3]
