"""Classification of images under the shared training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from ...core.classification import balanced_weights, classification_metrics
from ...core.errors import ConfigError
from ...core.optimizers import ScheduleName
from ...core.plots import confusion_figure
from ...core.task import Stage, Task
from .module import ClassifyData
from .report import Mistakes, class_report, draw_mistakes, list_mistakes, write_predictions
from .weights import create_backbone, load_backbone

logger = logging.getLogger(__name__)

ClassWeights = Literal["none", "balanced"]
_MOST_DRAWN = 100


class ImageClassification(Task):
    """Any backbone that timm knows, ours included, with one class for each image.

    Trains on cross-entropy. Reports accuracy, macro F1, macro area under the ROC curve, and the calibration error of
    the most likely class; after a test, a table by class, the confusion matrix, and the worst mistakes.

    Args:
        backbone: A name of ``timm.list_models()``, such as vim_tiny; ``scanweave models`` lists ours.
        backbone_options: Further arguments of the backbone, such as ``{"mixer": "gla"}``.
        pretrained: File of weights to start from: .safetensors, .pth, a run's checkpoint, or an exported model's.
        freeze: Train the classifier alone, on the features of a backbone that stays as it is (a linear probe).
        drop_rate: Dropout before the classifier; nothing is passed on where it is 0.
        drop_path_rate: Stochastic depth; nothing is passed on where it is 0.
        layer_decay: Factor on the learning rate from each layer to the one below; 1 for the same in all.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none. With both, each batch draws one of them.
        label_smoothing: Share of each target spread over all classes.
        class_weights: ``balanced`` weighs each class in the loss by the inverse of its share of the training images.
        top_k: Most likely classes that predictions list.
        lr: Learning rate.
        weight_decay: Decay of matrices.
        schedule: Learning rate over epochs.
        options: The shared training's other arguments.
    """

    def __init__(
        self,
        backbone: str = "vim_tiny",
        backbone_options: dict[str, Any] | None = None,
        pretrained: str | None = None,
        freeze: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_decay: float = 1.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
        top_k: int = 5,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        schedule: ScheduleName = "cosine",
        **options: Any,
    ) -> None:
        super().__init__(lr=lr, weight_decay=weight_decay, schedule=schedule, **options)
        self.backbone, self.backbone_options = backbone, dict(backbone_options or {})
        self.pretrained, self.is_frozen, self.layer_decay = pretrained, freeze, layer_decay
        self.drop_rate, self.drop_path_rate = drop_rate, drop_path_rate
        self.mixup, self.cutmix = mixup, cutmix
        self.label_smoothing, self.class_weights, self.top_k = label_smoothing, class_weights, top_k
        self.predicts: Literal["probabilities", "features"] = "probabilities"
        self._context: dict[str, Any] = {}
        self._is_trained = False
        self._mistakes = Mistakes()
        self._counts: np.ndarray | None = None

    # --- context and network --------------------------------------------------------------------------------------

    def context(self) -> dict[str, Any]:
        if not self._context:
            self._context = self._data.context()
        return self._context

    def set_context(self, context: Mapping[str, Any]) -> None:
        """Take ``classes`` (names), ``counts`` (training images of each) and ``preprocessing`` of a trained model."""
        self._context, self._is_trained = dict(context), True

    def configure_models(self) -> None:
        self._check_settings()
        preprocessing = self.context()["preprocessing"]
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        self.model = create_backbone(
            self.backbone,
            img_size=preprocessing["img_size"],
            options=self.backbone_options,
            num_classes=len(self.context()["classes"]),
            in_chans=preprocessing["in_chans"],
            **{name: rate for name, rate in rates.items() if rate},
        )
        if self.pretrained is not None and not self._is_trained:
            left = load_backbone(self.model, self.pretrained)
            logger.warning("%s: loaded%s", self.pretrained, f", but for {', '.join(left)}" if left else " whole")
        if self.is_frozen:
            self.model.requires_grad_(False)
            cast(Any, self.model).get_classifier().requires_grad_(True)
            self.model.eval()

    def _check_settings(self) -> None:
        # Not in the constructor: the command line's parser would bury the message under its own.
        if not 0.0 < self.layer_decay <= 1.0:
            raise ConfigError(f"--model.layer_decay is {self.layer_decay}; expected a factor above 0, at most 1")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--model.{name} is {getattr(self, name)}; expected 0 or more")
        if self.top_k < 1:
            raise ConfigError(f"--model.top_k is {self.top_k}; expected at least 1")

    def train(self, mode: bool = True) -> ImageClassification:
        """Set the training mode; a frozen backbone stays in evaluation mode, its batch statistics and all."""
        super().train(mode)
        if self.is_frozen and self._is_built:
            self.model.eval()
        return self

    def configure_losses(self) -> None:
        weight = balanced_weights(self.context()["counts"]) if self.class_weights == "balanced" else None
        self.criterion = nn.CrossEntropyLoss(weight, label_smoothing=self.label_smoothing)

    def configure_metrics(self) -> None:
        classes = len(self.context()["classes"])
        self.set_metrics(classification_metrics(classes))
        self.train_metrics = MetricCollection({}, prefix="train/")
        self.confusion = MulticlassConfusionMatrix(classes)
        self._mix = None
        if self.mixup or self.cutmix:
            self._mix = Mixup(
                mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, label_smoothing=0.0, num_classes=classes
            )

    def optimizer_groups(self) -> list[dict[str, Any]]:
        groups = super().optimizer_groups()
        if self.layer_decay == 1.0:
            return groups
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        plain = [names[p] for group in groups if group["weight_decay"] == 0 for p in group["params"]]
        scaled = param_groups_layer_decay(self.model, self.weight_decay, plain, layer_decay=self.layer_decay)
        return [
            {"params": g["params"], "weight_decay": g["weight_decay"], "lr": self.lr * g["lr_scale"]} for g in scaled
        ]

    # --- steps ----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        size = min(self._data.batch_size, len(self._data.training_images())) // self.trainer.world_size
        if self._mix is not None and size % 2:
            raise ConfigError(
                f"mixup and CutMix mix images in pairs, and a process's batch has {size}; choose an even "
                "--data.batch_size per process, of at most the number of training images"
            )

    def compute(self, batch: Any, stage: Stage) -> Tensor:
        images, target = batch["image"], batch["target"]
        if stage == "train":
            if self._mix is not None:
                images, target = self._mix(images, target)
            return self.criterion(self.model(images).float(), target)
        logits = self.model(images).float()
        probabilities = logits.detach().softmax(-1)
        self.metrics(stage).update(probabilities, target)
        if stage == "test":
            self.confusion.update(probabilities, target)
            self._mistakes.update(batch["index"], probabilities, target)
        return self.criterion(logits, target)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        if self.predicts == "features":
            model: Any = self.model
            features = model.forward_head(model.forward_features(batch["image"]), pre_logits=True)
            return {"index": batch["index"], "features": features.float().cpu()}
        return {"index": batch["index"], "probabilities": self.model(batch["image"]).float().softmax(-1).cpu()}

    # --- what a run writes ----------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        self.confusion.reset()
        self._mistakes, self._counts = Mistakes(), None

    def on_test_epoch_end(self) -> None:
        self._counts = self.confusion.compute().cpu().numpy().astype(np.int64)
        self._mistakes.gather(self.all_gather)

    def draw(self, folder: Path) -> list[Path]:
        if self._counts is None:
            return []
        classes = self.context()["classes"]
        class_report(self._counts, classes, folder.parent / "classes.csv")
        drawn = []
        if len(classes) <= _MOST_DRAWN:
            drawn.append(confusion_figure(self._counts, classes, folder / "confusion.png"))
        if len(self._mistakes):
            images, most = self._data.images("test"), self._data.max_pixels
            list_mistakes(self._mistakes, images, classes, folder.parent / "mistakes.csv")
            drawn.append(draw_mistakes(self._mistakes, images, classes, most, folder / "mistakes.png"))
        return drawn

    def save_predictions(self, outputs: list[Any], folder: Path) -> Path:
        """Write ``predictions.csv``: each image's most likely labels and their probabilities."""
        index, probabilities = (torch.cat([output[name] for output in outputs]) for name in ("index", "probabilities"))
        names = [self._data.images("predict").names[i] for i in index.tolist()]
        path = folder / "predictions.csv"
        return write_predictions(names, probabilities.double().numpy(), self.context()["classes"], self.top_k, path)

    def describe_batch(self, batch: Any) -> str:
        names = self._data.training_images().names
        return "images " + ", ".join(names[i] for i in batch["index"].tolist()[:8])

    @property
    def _data(self) -> ClassifyData:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClassifyData):
            raise ConfigError(f"{type(self).__name__} reads classes and sizes from a ClassifyData module; pass one")
        return data
