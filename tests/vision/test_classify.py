"""``scanweave classify``: what it learns and writes, how it resumes, starts from other weights and leaves the house."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from scanweave.core import ConfigError
from scanweave.core.checkpoint import load_exported
from scanweave.core.cli import main
from scanweave.core.storage import read_checkpoint
from scanweave.vision.classification import ClassifyData, ImageClassification
from scanweave.vision.classification.cli import CLASSIFY
from scanweave.vision.classification.report import Mistakes, class_report
from scanweave.vision.classification.weights import create_backbone, load_backbone

from .pictures import COLOURS, write_divided, write_folder

TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
COMMON = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false", "--data.num_workers", "0"]
SMALL = [*COMMON, "--model.backbone", "test_vit", "--model.backbone_options", json.dumps(TINY)]
SMALL += ["--data.img_size", "16", "--data.batch_size", "6"]


def run(*arguments: str) -> int:
    return main(["classify", *arguments], {"classify": replace(CLASSIFY, trusted=("tests.core.tiny.",))})


def fit(root: Path, out: Path, *options: str, epochs: int = 1) -> int:
    epochs_option = ["--trainer.max_epochs", str(epochs)]
    return run("fit", "--data.root", str(root), "--out", str(out), *SMALL, *epochs_option, *options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]


def test_fit_test_predict_features_and_export(tmp_path: Path, capsys) -> None:
    root, out = write_folder(tmp_path / "images"), tmp_path / "run"
    assert fit(root, out, "--model.lr", "1e-2", "--data.color_jitter", "0", epochs=8) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    names = ("accuracy", "auroc", "calibration_error", "f1", "loss")
    assert set(metrics) == {"val/loss", *(f"test/{name}" for name in names)}
    assert metrics["test/accuracy"] == 1.0
    split = pd.read_csv(out / "split.csv")
    assert pd.crosstab(split["label"], split["part"]).to_dict("list") == {
        "test": [2] * 3,
        "train": [6] * 3,
        "val": [2] * 3,
    }
    report = pd.read_csv(out / "classes.csv")
    assert list(report["class"]) == list(COLOURS)
    assert report["recall"].tolist() == [1.0] * 3
    assert (out / "figures" / "confusion.png").stat().st_size > 10_000
    checkpoint = ["--out", str(out), "--ckpt_path", "best"]
    assert run("test", *checkpoint) == 0
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(metrics)

    other = write_folder(tmp_path / "other" / "deep", per_class=2, seed=7)
    (other / "notes.txt").write_text("left aside by predict")
    elsewhere = [*checkpoint, "--data.root", str(tmp_path / "other")]
    assert run("predict", *elsewhere) == 0
    table = pd.read_csv(out / "predictions.csv")
    assert list(table.columns) == ["image", *(f"{n}{k}" for k in ("", "_2", "_3") for n in ("label", "probability"))]
    assert list(table["image"]) == [f"deep/{label}/{i}.png" for label in COLOURS for i in range(2)]
    assert list(table["label"]) == [label for label in COLOURS for _ in range(2)]
    assert np.allclose(table.filter(like="probability").sum(axis=1), 1)

    assert run("features", *elsewhere) == 0
    features = np.load(out / "features.npy")
    assert features.shape == (6, 16)
    assert list(pd.read_csv(out / "features.csv")["image"]) == list(table["image"])
    assert run("features", *checkpoint, "--part", "test") == 0
    assert list(pd.read_csv(out / "features.csv")["label"]) == [label for label in COLOURS for _ in range(2)]

    assert run("export", *checkpoint, "--formats", "[safetensors,torch_export]") == 0
    exported = load_exported(out / "export")
    program = torch.export.load(out / "export" / "model.pt2").module()
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(program(images), exported(images))
    head = exported.model.forward_head(exported.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(exported.model.get_classifier()(head), exported(images))
    for file in ("export/weights.safetensors", "checkpoints/best.ckpt"):
        again = create_backbone("test_vit", img_size=16, options=TINY, num_classes=3)
        assert load_backbone(again, str(out / file)) == []
        torch.testing.assert_close(again.eval()(images), exported(images))
    if find_spec("onnxruntime") is None:
        capsys.readouterr()
        assert run("export", *checkpoint, "--formats", "[onnx]") == 1
        assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    else:
        assert run("export", *checkpoint, "--formats", "[onnx]") == 0


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path) -> None:
    root = write_divided(tmp_path / "images", train=5, val=1, test=1)
    options = ["--model.schedule", "constant", "--model.mixup", "0.4", "--model.cutmix", "1", "--model.ema", "0.9"]
    options += ["--model.drop_path_rate", "0.2", "--data.random_erasing", "0.5"]
    options += ["--data.auto_augment", "rand-m5-mstd0.5"]
    stop = ["--trainer.callbacks", "tests.core.tiny.Signal", "--trainer.callbacks.number", "15"]
    stopped = fit(root, tmp_path / "a", *options, *stop, "--trainer.callbacks.batch", "2", epochs=3)
    assert stopped == 128 + 15  # after the first of the second epoch's two batches
    again = ["--out", str(tmp_path / "a"), "--ckpt_path", "last", "--trainer.callbacks", "null"]
    assert run("fit", *again) == 0
    assert fit(root, tmp_path / "b", *options, epochs=3) == 0
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_images_that_changed_since_training_are_not_divided_anew(tmp_path: Path, capsys) -> None:
    root, out = write_folder(tmp_path / "images", 5), tmp_path / "run"
    assert fit(root, out) == 0
    (root / "red" / "0.png").rename(root / "red" / "9.png")
    checkpoint = ["--out", str(out), "--ckpt_path", "best"]
    capsys.readouterr()
    assert run("test", *checkpoint) == 1
    assert "images it has learnt from would count as unseen" in capsys.readouterr().err
    assert run("test", *checkpoint, "--data.test_root", str(root)) == 0
    assert pd.read_csv(out / "classes.csv")["images"].tolist() == [5, 5, 5]
    assert run("predict", *checkpoint, "--data.img_size", "24") == 1
    assert "the model was trained with --data.img_size 16" in capsys.readouterr().err


def test_rare_classes_weigh_more_or_come_more_often(tmp_path: Path) -> None:
    root = write_divided(tmp_path / "images", train=8, val=1, test=1)
    for i in range(2, 8):
        (root / "train" / "red" / f"{i}.png").unlink()
    assert fit(root, tmp_path / "run", "--model.class_weights", "balanced") == 0
    assert weights(tmp_path / "run")["criterion.weight"].tolist() == pytest.approx([18 / 24, 18 / 24, 18 / 6])
    data = ClassifyData(str(root), balance="oversample", img_size=16)
    assert data.context()["counts"] == [8, 8, 8]
    repeated = [name for name in data.training_images().names if "red" in name]
    assert sorted(repeated) == [f"train/red/{i}.png" for i in (0, 1) for _ in range(4)]
    assert len(data.images("train")) == 18


def built(**options) -> ImageClassification:
    task = ImageClassification("test_vit", TINY | {"depth": 3}, **options)
    preprocessing = {"img_size": 16, "in_chans": 3}
    task.set_context({"classes": ["a", "b"], "counts": [1, 1], "preprocessing": preprocessing})
    task.build()
    return task


def test_layer_decay_slows_the_lower_layers_and_exempts_what_no_decay_reaches() -> None:
    task = built(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    of = {id(p): g for g in task.optimizer_groups() for p in g["params"]}
    model = task.model
    assert len(of) == sum(1 for _ in model.parameters())
    rates = [of[id(model.head.weight)]["lr"], *(of[id(block.mlp.fc1.weight)]["lr"] for block in model.blocks[::-1])]
    assert rates == [1.0, 0.5, 0.25, 0.125]
    assert of[id(model.patch_embed.proj.weight)]["lr"] == 0.0625
    assert of[id(model.blocks[0].mlp.fc1.weight)]["weight_decay"] == 0.1
    assert of[id(model.pos_embed)]["weight_decay"] == 0
    assert of[id(model.blocks[0].mlp.fc1.bias)]["weight_decay"] == 0


def test_a_frozen_backbone_keeps_its_weights_and_its_batch_statistics(tmp_path: Path) -> None:
    root = write_divided(tmp_path / "images", train=4, val=1, test=1)
    start = timm.create_model("test_resnet", num_classes=7)
    start(torch.randn(8, 3, 32, 32))  # moves the statistics
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in start.state_dict().items()}}, tmp_path / "w.pth"
    )
    options = ["--model.backbone", "test_resnet", "--model.backbone_options", "{}", "--model.freeze", "true"]
    assert fit(root, tmp_path / "run", *options, "--model.pretrained", str(tmp_path / "w.pth")) == 0
    trained = weights(tmp_path / "run")
    for key, value in start.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(trained[f"model.{key}"], value), key
    assert trained["model.fc.weight"].shape == (3, start.num_features)


def test_weights_come_from_a_file_whose_other_tensors_must_fit(tmp_path: Path) -> None:
    def model(name: str = "test_vit", classes: int = 3, img_size: int = 16, **options):
        return create_backbone(name, img_size=img_size, options=TINY | options, num_classes=classes)

    source = model(classes=5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    larger = model(img_size=32)
    assert load_backbone(larger, str(tmp_path / "w.safetensors")) == ["head.weight", "head.bias"]
    assert torch.equal(larger.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert larger.pos_embed.shape[1] == 17  # resampled from 2 x 2 to 4 x 4 patches, and the class token
    assert load_backbone(model(classes=5), str(tmp_path / "w.safetensors")) == []
    with pytest.raises(ConfigError, match=r"missing in the file: blocks\.1\."):
        load_backbone(model(depth=2), str(tmp_path / "w.safetensors"))
    torch.save({"model": source}, tmp_path / "pickled.pth")
    with pytest.raises(ConfigError, match="holds pickled objects"):
        load_backbone(model(), str(tmp_path / "pickled.pth"))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:500])
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        load_backbone(model(), str(tmp_path / "cut.safetensors"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.backbone", "test_vitt"], "timm does not know (did you mean 'test_vit'?)"),
        (["--model.backbone_options", '{"dept": 2}'], "cannot be built at 16 pixels with {'num_classes': 3"),
        (["--model.mixup", "0.2", "--data.batch_size", "5"], "a process's batch has 5; choose an even"),
        (["--model.layer_decay", "2"], "--model.layer_decay is 2.0"),
        (["--data.scale", "[0.5, 2]"], "--data.scale is [0.5, 2.0]"),
        (["--data.mean", "[0.5]"], "--data.mean has 1 values; expected 3"),
        (["--data.auto_augment", "magic"], "--data.auto_augment is 'magic', which timm refuses"),
        (["--model.pretrained", "nowhere.pth"], "nowhere.pth: there is no such checkpoint file"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, capsys, options: list[str], said: str) -> None:
    root = write_divided(tmp_path / "images", train=2, val=1, test=1)
    assert fit(root, tmp_path / "run", *options) == 1
    assert said in capsys.readouterr().err


def test_the_most_certain_mistakes_are_kept_and_each_class_is_measured(tmp_path: Path) -> None:
    kept = Mistakes(most=2)
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    kept.update(torch.tensor([10, 11, 12, 13]), probabilities, torch.tensor([0, 0, 0, 0]))
    assert [row[:3] for row in kept.rows()] == [(12, 0, 1), (13, 0, 1)]
    kept.gather(lambda rows: torch.stack((rows, torch.tensor([[0.75, 5, 1, 0], [-1, -1, -1, -1]], dtype=rows.dtype))))
    assert [row[0] for row in kept.rows()] == [12, 5]
    table = pd.read_csv(class_report(np.array([[3, 1], [0, 0]]), ["a", "b"], tmp_path / "classes.csv"))
    assert table["precision"].tolist() == [1.0, 0.0]
    assert table["recall"].tolist()[0] == 0.75
    assert np.isnan(table["recall"][1])  # no image of it
    assert table["f1"].tolist() == [pytest.approx(6 / 7), 0.0]


def test_the_packaged_configurations(tmp_path: Path) -> None:
    quick = [*COMMON, "--trainer.max_epochs", "1", "--model.warmup_epochs", "0", "--data.batch_size", "8"]
    few = [f"--trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]
    assert run("fit", "--config", "vision/classify_digits", *quick, *few, "--out", str(tmp_path / "digits")) == 0
    kept = yaml.safe_load((tmp_path / "digits" / "config.yaml").read_text())
    assert kept["data"]["root"] is None
    assert list(pd.read_csv(tmp_path / "digits" / "mistakes.csv")) == ["image", "label", "called", "probability"]
    assert (tmp_path / "digits" / "figures" / "mistakes.png").stat().st_size > 10_000
    root = write_folder(tmp_path / "images")
    small = ["--config", "vision/classify_folder_small", "--data.root", str(root)]
    assert run("fit", *small, *quick, *few, "--out", str(tmp_path / "small")) == 0
