"""The networks that ``--model`` names."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, cast

from torch import nn

from ...core.blocks import Feedforward
from ..classification.weights import load_backbone
from .clip import SPATIAL_FIRST, ScanClipNetwork
from .dataset import ClipInput
from .encoder import FrameEncoder
from .inception import TemporalInceptionNetwork
from .lrcn import LRCNNetwork, Readout
from .task import VideoClassification
from .tslstm import TSLSTMNetwork

logger = logging.getLogger(__name__)


class _OnFrames(VideoClassification):
    """A network over the features of frames.

    Args:
        backbone: A name of ``timm.list_models()``, such as resnet18; ``scanweave models`` lists ours.
        backbone_options: The backbone's own arguments.
        grid: 1 takes the backbone's pooled features, g > 1 its last map averaged over g x g cells, so that places are
            kept.
        pretrained: File of weights of the backbone to start from; a second stream starts untrained.
        freeze: Leave the backbone as it is.
        options: As of :class:`VideoClassification`.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone_options: dict[str, Any] | None = None,
        grid: int = 1,
        pretrained: str | None = None,
        freeze: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.backbone, self.backbone_options, self.grid = backbone, dict(backbone_options or {}), grid
        self.pretrained, self.is_frozen = pretrained, freeze

    def encoder(self, inputs: ClipInput, in_chans: int) -> FrameEncoder:
        """Return a new encoder of frames."""
        return FrameEncoder(
            self.backbone, img_size=inputs.img_size, in_chans=in_chans, options=self.backbone_options, grid=self.grid
        )

    def configure_models(self) -> None:
        super().configure_models()
        encoder = self._frames_encoder()
        if self.pretrained is not None and not self.is_trained:
            load_backbone(encoder.backbone, self.pretrained)
            logger.warning("%s: loaded into the frames' backbone", self.pretrained)
        if self.is_frozen:
            encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _OnFrames:
        """Set the training mode; a frozen backbone stays in evaluation mode, its batch statistics and all."""
        super().train(mode)
        if self.is_frozen and self._is_built:
            self._frames_encoder().eval()
        return self

    def _frames_encoder(self) -> FrameEncoder:
        return cast(Any, self.model)["video"].encoder


class LRCN(_OnFrames):
    """A recurrence over the features of frames, with a decision at each frame.

    Args:
        mixer: Any registered mixer of series; ``scanweave models`` lists them.
        mixer_options: The mixer's own arguments.
        width: Features of the recurrence.
        depth: Blocks.
        mlp_ratio: Hidden features of the blocks' feed-forward layers in multiples of width; 0 leaves them out.
        mlp: Their kind, ``mlp`` or ``swiglu``.
        dropout: Rate on the frames' features and before the classifier.
        readout: A clip's logits: ``average`` of the frames', those of the ``last`` frame, or of the ``pooled``
            recurrent features.
        options: As of the base class: backbone and training.
    """

    takes_length: ClassVar[bool] = True

    def __init__(
        self,
        mixer: str = "lstm",
        mixer_options: dict[str, Any] | None = None,
        width: int = 256,
        depth: int = 1,
        mlp_ratio: float = 0.0,
        mlp: Feedforward = "mlp",
        dropout: float = 0.0,
        readout: Readout = "average",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.mixer, self.mixer_options, self.readout = mixer, dict(mixer_options or {}), readout
        self.width, self.depth, self.mlp_ratio, self.mlp, self.dropout = width, depth, mlp_ratio, mlp, dropout

    def configure_network(self, classes: int, inputs: ClipInput, in_chans: int) -> nn.Module:
        return LRCNNetwork(
            self.encoder(inputs, in_chans), classes, mixer=self.mixer, mixer_options=self.mixer_options,
            width=self.width, depth=self.depth, mlp_ratio=self.mlp_ratio, mlp=self.mlp, dropout=self.dropout,
            readout=self.readout,
        )  # fmt: skip


class TSLSTM(_OnFrames):
    """Temporal segments, pooled, and an LSTM over the segments.

    Args:
        segments: Equal parts of a clip.
        hidden: Features of the LSTM.
        dropout: Rate before the classifier.
        options: As of the base class: backbone and training.
    """

    def __init__(self, segments: int = 3, hidden: int = 512, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.segments, self.hidden, self.dropout = segments, hidden, dropout

    def configure_network(self, classes: int, inputs: ClipInput, in_chans: int) -> nn.Module:
        encoder = self.encoder(inputs, in_chans)
        return TSLSTMNetwork(encoder, classes, segments=self.segments, hidden=self.hidden, dropout=self.dropout)


class TemporalInception(_OnFrames):
    """Convolutions over time of several widths side by side, four times.

    Args:
        width: Features of the blocks.
        kernels: Frames that the convolutions side by side span, odd.
        blocks: How many.
        pool: Frames that each block joins by their maximum.
        dropout: Rate before the classifier.
        options: As of the base class: backbone and training.
    """

    def __init__(
        self,
        width: int = 512,
        kernels: list[int] | None = None,
        blocks: int = 4,
        pool: int = 2,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.width, self.kernels, self.blocks, self.pool = width, kernels or [3, 7], blocks, pool
        self.dropout = dropout

    def configure_network(self, classes: int, inputs: ClipInput, in_chans: int) -> nn.Module:
        return TemporalInceptionNetwork(
            self.encoder(inputs, in_chans), classes, width=self.width, kernels=self.kernels, blocks=self.blocks,
            pool=self.pool, dropout=self.dropout,
        )  # fmt: skip


class ScanClip(VideoClassification):
    """Space-time tokens mixed along orders of the clip.

    Args:
        mixer: Any registered mixer's name; ``scanweave models`` lists them.
        orders: Orders that a mixer of series runs along, by name: ``raster`` takes all places of a frame before the
            next frame (spatial first), ``temporal-first`` all frames of a place; by default spatial first, both ways.
        mixer_options: The mixer's own arguments.
        tubelet: Frames of a token.
        patch_size: Side of a token, pixels.
        width: Features of a token.
        depth: Blocks.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width.
        dropout: Rate before the classifier.
        options: As of :class:`VideoClassification`.
    """

    def __init__(
        self,
        mixer: str = "mamba",
        orders: list[str] | None = None,
        mixer_options: dict[str, Any] | None = None,
        tubelet: int = 1,
        patch_size: int = 16,
        width: int = 192,
        depth: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.mixer, self.mixer_options = mixer, dict(mixer_options or {})
        self.orders = tuple(orders or SPATIAL_FIRST)
        self.tubelet, self.patch_size, self.width, self.depth = tubelet, patch_size, width, depth
        self.mlp_ratio, self.dropout = mlp_ratio, dropout

    def configure_network(self, classes: int, inputs: ClipInput, in_chans: int) -> nn.Module:
        return ScanClipNetwork(
            classes, frames=inputs.frames, img_size=inputs.img_size, in_chans=in_chans, mixer=self.mixer,
            orders=self.orders, mixer_options=self.mixer_options, tubelet=self.tubelet, patch_size=self.patch_size,
            width=self.width, depth=self.depth, mlp_ratio=self.mlp_ratio, dropout=self.dropout,
        )  # fmt: skip
