"""Images from folders, archives, lists and datasets: read right, or refused by name."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from scanweave.core import DataError
from scanweave.core.cli import main
from scanweave.vision.classification import ClassifyData, Preprocessing
from scanweave.vision.classification.cli import CLASSIFY
from scanweave.vision.classification.decode import decode

from .pictures import COLOURS, picture, write_divided, write_folder


def data(root: Path | str | None, **options) -> ClassifyData:
    module = ClassifyData(None if root is None else str(root), img_size=16, num_workers=0, **options)
    module.setup("fit")
    return module


def sizes(module: ClassifyData) -> list[int]:
    return [len(module.images(part)) for part in ("train", "val", "test")]


def zipped(folder: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + str(file.relative_to(folder)))
    return path


# --- where images come from -------------------------------------------------------------------------------------------


def test_parts_are_taken_as_they_are_and_absent_ones_are_held_out(tmp_path: Path) -> None:
    whole = data(write_divided(tmp_path / "a", train=5, val=2, test=3))
    assert sizes(whole) == [15, 6, 9]
    assert all(name.startswith("val/") for name in whole.images("val").names)
    assert sizes(data(write_divided(tmp_path / "b", training=5, valid=2))) == [12, 6, 3]
    assert sizes(data(write_divided(tmp_path / "c", train=5, test=2))) == [12, 3, 6]
    one_level = data(write_folder(tmp_path / "d", 10), seed=1)
    assert sizes(one_level) == [18, 6, 6]
    names = [set(one_level.images(part).names) for part in ("train", "val", "test")]
    assert len(set.union(*names)) == 30
    again, other = data(tmp_path / "d", seed=1), data(tmp_path / "d", seed=2)
    assert again.images("val").names == one_level.images("val").names
    assert other.images("val").names != one_level.images("val").names


def test_an_archive_and_a_list_give_what_the_folder_gives(tmp_path: Path) -> None:
    root = write_divided(tmp_path / "images", train=3, val=1, test=1)
    (root / "train" / "red" / ".DS_Store").write_text("clutter")
    rows = [(str(p.relative_to(tmp_path)), p.parts[-3], p.parts[-2]) for p in sorted(root.rglob("*.png"))]
    pd.DataFrame(rows, columns=["Path", "split", "label"]).to_csv(tmp_path / "list.csv", index=False, sep=";")
    folder = data(root)
    sources = zipped(root, tmp_path / "a.zip"), zipped(root, tmp_path / "b.zip", "wrapped/"), tmp_path / "list.csv"
    for source in sources:
        other = data(source)
        assert sizes(other) == sizes(folder)
        assert other.context() == folder.context()
        for part in ("train", "val", "test"):
            for one, same in zip(folder.loader(part), other.loader(part), strict=True):
                assert torch.equal(one["image"], same["image"])
                assert torch.equal(one["target"], same["target"])


def test_workers_read_an_archive_each_with_a_handle_of_its_own(tmp_path: Path) -> None:
    root = zipped(write_divided(tmp_path / "images", train=6, val=1, test=1), tmp_path / "a.zip")
    alone = data(root)
    alone.images("train").picture(0, 1000)  # the handle is open when the workers start
    alone.num_workers, alone.batch_size = 2, 3
    together = [batch["image"] for batch in alone.loader("train")]
    alone.num_workers = 0
    assert all(torch.equal(a, b["image"]) for a, b in zip(together, alone.loader("train"), strict=True))


def test_digits_and_torchvisions_datasets(tmp_path: Path) -> None:
    digits = data(None, in_chans=1)
    assert sum(sizes(digits)) == 1797
    assert digits.classes == tuple(map(str, range(10)))
    assert next(iter(digits.train_dataloader()))["image"].shape == (32, 1, 16, 16)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 6)):
        pixels = np.random.default_rng(0).integers(0, 255, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        labels = (np.arange(count) % 2).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    mnist = data("MNIST", download_root=str(tmp_path))
    assert sizes(mnist) == [16, 4, 6]
    assert mnist.classes == ("0 - zero", "1 - one")
    with pytest.raises(DataError, match=r"pass --data\.download true"):
        data("CIFAR10", download_root=str(tmp_path))


def test_a_real_archive_of_photographs(data_path) -> None:
    module = data(data_path("images/cifar10_subset_jpg.zip"))
    assert sizes(module) == [2400, 600, 1000]
    assert module.context()["counts"] == [240] * 10


def test_augmentation_depends_on_seed_epoch_and_batch_alone(tmp_path: Path) -> None:
    module = data(write_divided(tmp_path / "a", train=4, val=1, test=1), batch_size=6, random_erasing=0.5)
    loader = module.train_dataloader()
    first, second = list(loader), list(loader)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    loader.batch_sampler.set_epoch(1)
    assert not torch.equal(next(iter(loader))["image"], first[0]["image"])
    plain = ClassifyData(str(tmp_path / "a"), img_size=16, num_workers=0, augment=False, batch_size=12)
    plain.setup("fit")
    (shuffled,), (ordered,) = list(plain.train_dataloader()), list(plain.loader("train"))
    assert torch.equal(shuffled["image"], ordered["image"][shuffled["index"]])


# --- pixels -----------------------------------------------------------------------------------------------------------


def stored(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixel(file: io.BytesIO, at: tuple[int, int] = (0, 0)) -> object:
    return decode(file, "x").getpixel(at)


def test_every_mode_becomes_eight_bits_by_a_stated_conversion() -> None:
    cyan = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert np.allclose(pixel(stored(cyan, "TIFF")), (0, 255, 255), atol=2)
    deep = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        assert [pixel(stored(deep, kind), (i, 0)) for i in range(3)] == [0, 0x12, 0xFF]
    glass = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    glass.putpixel((1, 0), (255, 0, 0, 128))
    assert pixel(stored(glass, "PNG")) == (255, 255, 255)
    assert pixel(stored(glass, "PNG"), (1, 0)) == (255, 127, 127)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(stored(palette, "PNG")) == (10, 200, 30)
    assert pixel(stored(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert pixel(stored(Image.new("LA", (1, 1), (0, 0)), "PNG")) == 255
    assert pixel(stored(Image.new("L", (1, 1), 7), "PNG", transparency=7)) == 255
    assert pixel(stored(Image.new("1", (1, 1), 1), "PNG")) == 255
    with pytest.raises(DataError, match="x: found pixels of mode F"):
        pixel(stored(Image.new("F", (1, 1), 0.5), "TIFF"))
    with pytest.raises(DataError, match="x: found values from -1 to -1, expected 16 bits"):
        pixel(stored(Image.new("I", (1, 1), -1), "TIFF"))


def test_cameras_rotations_are_honoured() -> None:
    image = Image.new("RGB", (6, 4), "black")
    image.paste((255, 255, 255), (0, 0, 3, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = decode(stored(image, "JPEG", exif=exif, quality=95), "x")
    assert turned.size == (4, 6)
    assert min(turned.getpixel((1, 0))) > 200
    assert max(turned.getpixel((1, 5))) < 50


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path: Path) -> None:
    for channels in (1, 3):
        transform = Preprocessing(8, channels).transform()
        for mode in ("L", "RGB"):
            image = Preprocessing(8, channels).mode(Image.new(mode, (9, 5), "white"))
            assert transform(image).shape == (channels, 8, 8)


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / "bad.png"
    file = io.BytesIO()
    picture("red", 0, (300, 300) if kind == "large" else (200, 200)).save(file, "PNG")
    contents = {
        "empty": b"",
        "cut": file.getvalue()[:5000],
        "text": b"<html>not found</html>",
        "large": file.getvalue(),
    }
    path.write_bytes(contents[kind])
    return path


BAD = {
    "empty": "the file is empty (0 bytes)",
    "cut": "cannot be decoded",
    "text": "found 22 bytes that start with b'<html>not fo'",
    "large": "refused, found 300 x 300 pixels, expected at most 80000",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = write_bad(tmp_path, kind)
    with pytest.raises(DataError) as error:
        decode(path, str(path), max_pixels=80_000)
    assert str(error.value).startswith(f"{path}: ")
    assert BAD[kind] in str(error.value)
    assert "--data.on_bad_sample skip" in str(error.value)


def test_a_bomb_is_refused_before_its_pixels_are_made(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))))
    with pytest.raises(DataError, match=r"bomb\.png: refused, found"):
        decode(tmp_path / "bomb.png", "bomb.png")


def test_a_bad_image_stops_training_by_name_or_is_left_out_and_counted(tmp_path: Path, capsys, caplog) -> None:
    root = write_divided(tmp_path / "images", train=4, val=1, test=1)
    for kind in BAD:
        write_bad(root / "train" / "red", kind).rename(root / "train" / "red" / f"{kind}.png")
    (root / "train" / "blue" / "notes.txt").write_text("to be removed")
    options = [
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_epochs",
        "1",
        "--data.num_workers",
        "0",
        "--data.img_size",
    ]
    options += ["16", "--model.backbone", "test_vit", "--model.backbone_options", '{"depth": 1, "patch_size": 8}']
    options += ["--data.root", str(root), "--data.batch_size", "8", "--data.max_pixels", "80000"]

    def fit(out: str, *more: str) -> int:
        return main(["classify", "fit", *options, "--out", str(tmp_path / out), *more], {"classify": CLASSIFY})

    assert fit("a") == 1
    assert "found 'train/blue/notes.txt' among the images" in capsys.readouterr().err
    (root / "train" / "blue" / "notes.txt").rename(root / "notes.txt")  # beside the folders it is a note
    assert fit("b", "--data.num_workers", "1") == 1
    said = capsys.readouterr().err
    assert f"DataError: {root}/train/red/" in said
    assert "Traceback" not in said  # not even from the loader's process
    (root / "notes.txt").rename(root / "train" / "blue" / "notes.txt")
    assert fit("c", "--data.on_bad_sample", "skip") == 0
    assert "5 files left out" in caplog.text
    skipped = pd.read_csv(tmp_path / "c" / "skipped.csv")
    expected = {"train/blue/notes.txt", *(f"train/red/{kind}.png" for kind in BAD)}
    assert set(skipped["image"]) == expected
    assert not expected & set(pd.read_csv(tmp_path / "c" / "split.csv")["image"])


# --- layouts that are refused -----------------------------------------------------------------------------------------


def empty(root: Path) -> None:
    for file in sorted(root.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def drop(*names: str):
    def change(root: Path) -> None:
        for name in names:
            folder = root / name
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    return change


def put(name: str, label: str = "red"):
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(label, 99).save(root / name)

    return change


def hollow(root: Path) -> None:
    for file in (root / "train" / "red").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (empty, "found 0 files and no image in a class folder; expected CLASS/image.jpg"),
        (drop("train/red", "train/green"), "found the one class blue, expected at least two"),
        (
            drop("val/red"),
            "val has no image of red; found blue, green; expected the classes of train: blue",
        ),
        (put("val/violet/0.png"), "val has images of violet, which train has not; found blue, green, red, violet"),
        (hollow, "train: found no image in the class folders red, and images in blue, green"),
        (put("train/0.png"), "found 'train/0.png' beside the class folders"),
        (put("train/Red/0.png"), "found the classes 'Red' and 'red', which differ in case or blanks alone"),
        (put("extra/red/0.png"), "found the folders extra beside test, train, val; expected train, val and test alone"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, change, said: str) -> None:
    root = write_divided(tmp_path / "images", train=2, val=1, test=1)
    change(root)
    with pytest.raises(DataError) as error:
        data(root)
    assert str(error.value).startswith(str(root))
    assert said in str(error.value)


def test_a_class_of_one_image_and_a_strange_file_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    put("violet/0.png")(root)
    with pytest.raises(DataError, match="found one image of violet, and a share of each class is held out"):
        data(root)
    with pytest.raises(
        DataError, match=r"no such file or folder, and no dataset of that name \(did you mean 'CIFAR10'"
    ):
        data("CIFAR")
    (tmp_path / "x.bin").write_bytes(b"?")
    with pytest.raises(DataError, match=r"found a file, expected a folder of class folders, a \.zip"):
        data(tmp_path / "x.bin")


def archive(path: Path, *members: tuple[str, bytes], link: str = "") -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of the name that comes twice
        for name, contents in members:
            file.writestr(name, contents)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, "/etc/passwd")
    return path


def test_unsafe_archives_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(DataError) as error:
            data(path)
        assert str(error.value).startswith(str(path))
        assert said in str(error.value)

    page = tmp_path / "page.zip"
    page.write_bytes(b"<!doctype html><p>moved</p>")
    refused(page, "not a zip archive (File is not a zip file); found bytes that start with b'<!doctype html><'")
    refused(archive(tmp_path / "a.zip", ("a/../../b.png", b"")), "member 'a/../../b.png': refused, its name leads out")
    refused(archive(tmp_path / "b.zip", ("/a.png", b"")), "member '/a.png': refused, its name leads out")
    refused(archive(tmp_path / "c.zip", link="a/b.png"), "member 'a/b.png': refused, it is a link")
    refused(archive(tmp_path / "d.zip", ("a/b.png", b"0" * 1_000_000)), "bytes unpack to 1000000")
    refused(archive(tmp_path / "e.zip", ("a/b.png", b"1"), ("a/b.png", b"2")), "'a/b.png': found a second time")
    cut = zipped(write_folder(tmp_path / "images", 4), tmp_path / "f.zip")
    blob = bytearray(cut.read_bytes())
    blob[200:260] = bytes(60)
    cut.write_bytes(blob)
    module = data(cut)
    with pytest.raises(DataError, match=r"f\.zip/blue/0\.png: cannot be unpacked \(Bad CRC-32"):
        [
            module.images(part).picture(i, 10**6)
            for part in ("train", "val", "test")
            for i in range(len(module.images(part)))
        ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\n", "found 0 rows below the header"),
        ("where,label\na.png,b\n", "no column of paths; found where, label; expected one named path, file"),
        ("path,what\nblue/0.png,b\n", "no column of labels; found path, what"),
        ("path,label\nblue/9.png,b\n", "row 2, column 'path': found 'blue/9.png', and there is no file"),
        ("path,label\nblue/0.png,b\nred/0.png,\n", "row 3, column 'label': found no label (1 such rows)"),
        ("path,label\nblue/0.png,b\nblue/0.png,r\n", "row 3, column 'path': found 'blue/0.png', which row 2 has too"),
        ("path,label,split\nblue/0.png,b,dev\n", "row 2, column 'split': found 'dev', expected train, val or test"),
        ("path,label,split\nblue/0.png,b,test\n", "column 'split': found test, expected some rows of train"),
    ],
)
def test_bad_lists_are_refused_by_row(tmp_path: Path, text: str, said: str) -> None:
    write_folder(tmp_path, 2)
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        data(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_predict_takes_one_image_or_any_folder_and_needs_one(tmp_path: Path) -> None:
    module = data(write_divided(tmp_path / "images", train=2, val=1, test=1))
    state = module.state_dict()

    def found(root: Path) -> list[str]:
        other = ClassifyData(str(root), img_size=16, num_workers=0)
        other.load_state_dict(state)
        other.setup("predict")
        return other.images("predict").names

    assert found(tmp_path / "images" / "val" / "red" / "0.png") == ["0.png"]
    assert found(tmp_path / "images" / "val") == [f"{label}/0.png" for label in COLOURS]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: found 0 files and no image among them"):
        found(tmp_path / "none")
