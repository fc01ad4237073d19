"""PanelNetwork: any registered mixer over the steps of whole series, pooled to one output per series."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core import Stack
from ...core.errors import ConfigError

_EPSILON = 1e-5


class PanelNetwork(nn.Module):
    """Embed overlapping patches, mix them with a stack of blocks, pool over time, map to the outputs.

    Series end where their length says: what stands after it (padding) changes nothing. A value that is not observed
    counts as its channel's mean over the series.

    Token i reads steps ``i stride - (patch - stride) // 2`` and the ``patch - 1`` that follow, zeros beyond the ends;
    the head reads the mean, the largest and the last of the mixed tokens.

    Args:
        channels: D, values at each step.
        outputs: O, classes or regression targets.
        mixer: A registered mixer's name.
        depth: Blocks.
        width: Features of a token.
        patch: Steps that a token reads.
        stride: Steps from one token to the next, at most patch.
        bidirectional: Mix in both directions, each with its own weights.
        norm: Normalise each channel of each series to mean 0 and deviation 1.
        mlp_ratio: Hidden features of the feed-forward layers in multiples of width; 0 leaves them out.
        dropout: Rate inside the feed-forward layers and before the head.

    Raises:
        ConfigError: A size is not positive, or tokens would leave steps out.

    Example:
        >>> import torch
        >>> from scanweave.timeseries.classifiers import PanelNetwork
        >>> network = PanelNetwork(channels=2, outputs=3, mixer="mingru", width=16, depth=1)
        >>> network(torch.zeros(4, 30, 2), torch.tensor([30, 12, 7, 30])).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        mixer: str = "mamba",
        depth: int = 2,
        width: int = 64,
        patch: int = 9,
        stride: int = 1,
        bidirectional: bool = True,
        norm: bool = False,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not 1 <= stride <= patch:
            raise ConfigError(f"patch is {patch} and stride {stride}; expected 1 <= stride <= patch")
        if channels < 1 or outputs < 1:
            raise ConfigError(f"channels is {channels} and outputs {outputs}; both must be at least 1")
        self.patch, self.stride, self.norm = patch, stride, norm
        self.before = (patch - stride) // 2
        self.embed = nn.Conv1d(channels, width, patch, stride)
        self.blocks = Stack(width, depth, mixer, bidirectional=bidirectional, mlp_ratio=mlp_ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(3 * width, outputs)

    def forward(self, series: Tensor, lengths: Tensor | None = None, observed: Tensor | None = None) -> Tensor:
        """Map series to outputs.

        Args:
            series: (B, L, D) float, each padded at its end to the longest.
            lengths: (B,) int64, at least 1 and at most L; None where all are L, which spares the mixers a reset.
            observed: (B, L, D) bool, False where a value is missing; None where none is.

        Returns:
            (B, O): logits, or regression targets.
        """
        place = torch.arange(series.shape[1], device=series.device)
        inside = place.expand(len(series), -1) >= 0 if lengths is None else place < lengths.unsqueeze(1)
        tokens = self._tokens(complete(series, inside, observed, norm=self.norm))
        within = inside[:, :: self.stride]
        # Padding is a sequence of its own: no state crosses from it, in either direction.
        reset = None if lengths is None else ~within & within.roll(1, 1)
        mixed, _ = self.blocks(tokens, reset=reset)
        return self.head(self.dropout(pool(mixed, within)))

    def _tokens(self, x: Tensor) -> Tensor:
        """Return tokens (B, ceil(L / stride), width) of complete series (B, L, D)."""
        steps = x.shape[1]
        count = -(-steps // self.stride)
        after = max(0, (count - 1) * self.stride + self.patch - self.before - steps)
        padded = nn.functional.pad(x.transpose(1, 2), (self.before, after))
        return self.embed(padded)[..., :count].transpose(1, 2)


def complete(series: Tensor, inside: Tensor, observed: Tensor | None, *, norm: bool) -> Tensor:
    """Fill missing values by their channel's mean over the series, normalise where asked, and blank the padding.

    Args:
        series: (B, L, D); what stands at unobserved places is ignored, NaN included.
        inside: (B, L) bool, True up to each series' end.
        observed: (B, L, D) bool, or None where nothing is missing.
        norm: Subtract the mean of the observed values and divide by their standard deviation.

    Returns:
        (B, L, D) finite values, 0 in the padding.
    """
    steps = inside.unsqueeze(-1)
    known = steps.expand_as(series) if observed is None else observed & steps
    count = known.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(known, series, 0).sum(1, keepdim=True) / count
    centred = torch.where(known, series - mean, 0)
    if norm:
        variance = centred.square().sum(1, keepdim=True) / count
        return centred / torch.sqrt(variance + _EPSILON)
    return torch.where(steps, centred + mean, 0)


def pool(tokens: Tensor, inside: Tensor) -> Tensor:
    """Return the mean, the largest and the last of each series' tokens, joined.

    Args:
        tokens: (B, T, C).
        inside: (B, T) bool, True for the first tokens of each series, one at least.

    Returns:
        (B, 3 C).
    """
    steps = inside.unsqueeze(-1)
    count = inside.sum(1)
    mean = torch.where(steps, tokens, 0).sum(1) / count.unsqueeze(1)
    largest = tokens.masked_fill(~steps, -torch.inf).amax(1)
    return torch.cat((mean, largest, tokens[torch.arange(len(tokens), device=tokens.device), count - 1]), dim=-1)
