"""``scanweave classify features``: what the backbone sees, as an array."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch

from ...core.errors import ConfigError
from ...core.session import predicted
from ...core.spec import Session
from ...core.storage import atomic_file
from .module import ClassifyData
from .task import ImageClassification


def features(session: Session, part: Literal["predict", "train", "val", "test"] = "predict") -> None:
    """Write each image's features, the classifier's inputs, to features.npy, and its name to features.csv.

    Args:
        session: The configured run.
        part: Images of this part of --data.root; predict takes all of them.
    """
    task, data = session.model, session.data
    assert isinstance(task, ImageClassification)  # the specification's classes
    assert isinstance(data, ClassifyData)
    if session.ckpt_path is None:
        raise ConfigError("features needs a trained model: pass --out RUN --ckpt_path best, or a checkpoint's path")
    data.setup(part if part == "predict" else "validate")
    task.predicts = "features"
    outputs = predicted(session, data.loader(part))
    if not session.trainer.is_global_zero:
        return
    index, values = (torch.cat([output[name] for output in outputs]) for name in ("index", "features"))
    images = data.images(part)
    table = pd.DataFrame({"image": [images.names[i] for i in index.tolist()]})
    if images.labels is not None:
        table["label"] = [images.labels[i] for i in index.tolist()]
    with atomic_file(session.run.path / "features.npy") as file:
        np.save(file, values.numpy())
    with atomic_file(session.run.path / "features.csv", "w") as file:
        table.to_csv(file, index=False)
    print(f"features: {session.run.path / 'features.npy'}, {values.shape[0]} images of {values.shape[1]} features")
