"""``scanweave classify``."""

from __future__ import annotations

from ...core.spec import TaskSpec, Verb
from .export import export_formats
from .features import features
from .module import ClassifyData
from .task import ImageClassification

CLASSIFY = TaskSpec(
    name="classify",
    help="Give images a class each, from folders of images.",
    module_class=ImageClassification,
    data_class=ClassifyData,
    verbs={
        "export": Verb(export_formats, "write a checkpoint as safetensors, torch.export or ONNX", configured=True),
        "features": Verb(features, "write what the backbone sees, as an array", configured=True),
    },
    trainer_defaults={"max_epochs": 20, "gradient_clip_val": 1.0},
    default_model=ImageClassification,
)
