"""TPGN as the paper draws it, with grouped convolutions: the oracle of the fast form and its peer in speed."""

from __future__ import annotations

import torch
from torch import nn

from scanweave.timeseries.data.spec import ForecastSpec
from scanweave.timeseries.forecasters.tpgn import TPGNNetwork


class ConvolutionPGN(nn.Module):
    """PGN down the rows of (B, C * F, R, P): the calendar stands in the input once for each channel."""

    def __init__(self, channels: int, inputs: int, hidden: int, rows: int) -> None:
        super().__init__()
        self.channels, self.rows = channels, rows
        self.history = nn.Conv2d(channels * inputs, channels * hidden, (max(rows - 1, 1), 1), groups=channels)
        self.gate = nn.Conv2d(channels * (inputs + hidden), channels * 2 * hidden, 1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (0, 0, max(self.rows - 1, 1), 0))[:, :, :-1]
        history = self.history(padded)
        split = (self.channels, -1)
        both = torch.cat((x.unflatten(1, split), history.unflatten(1, split)), dim=2).flatten(1, 2)
        gate, candidate = self.gate(both).unflatten(1, split).chunk(2, dim=2)
        gate, candidate = torch.sigmoid(gate).flatten(1, 2), torch.tanh(candidate).flatten(1, 2)
        return gate * history + (1 - gate) * candidate


class ConvolutionTPGN(nn.Module):
    """The network for a lookback and a horizon that are multiples of the period."""

    def __init__(self, spec: ForecastSpec, hidden: int, norm: bool) -> None:
        super().__init__()
        self.spec, self.norm = spec, norm
        self.rows, self.rows_out = spec.lookback // spec.period, spec.horizon // spec.period
        channels, inputs = spec.channels, 1 + spec.marks
        self.pgn = ConvolutionPGN(channels, inputs, hidden, self.rows)
        self.long = nn.Conv2d(channels * hidden, channels * hidden, (self.rows, 1), groups=channels)
        self.row = nn.Conv2d(channels * inputs, channels * hidden, (1, spec.period), groups=channels)
        self.short = nn.Conv2d(channels * hidden, channels * hidden, (self.rows, 1), groups=channels)
        self.head = nn.Conv2d(channels * 2 * hidden, channels * self.rows_out, 1, groups=channels)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        spec, past = self.spec, batch["past"]
        if self.norm:
            mean = past.mean(1, keepdim=True)
            deviation = torch.sqrt(past.var(1, keepdim=True, unbiased=False) + 1e-5)
            past = (past - mean) / deviation
        marks = batch["marks"][:, : spec.lookback].unsqueeze(2).expand(-1, -1, spec.channels, -1)
        x = torch.cat((past.unsqueeze(-1), marks), dim=-1).flatten(2)
        x = x.transpose(1, 2).unflatten(2, (self.rows, spec.period))
        split = (spec.channels, -1)
        long = self.long(self.pgn(x)).unflatten(1, split)
        short = self.short(self.row(x)).expand(-1, -1, -1, spec.period).unflatten(1, split)
        out = self.head(torch.cat((long, short), dim=2).flatten(1, 2))
        out = out.squeeze(2).unflatten(1, split).flatten(2).transpose(1, 2)
        return out * deviation + mean if self.norm else out

    @torch.no_grad()
    def copy_from(self, fast: TPGNNetwork) -> None:
        """Take over the weights of the fast form; its taps are oldest first, as a convolution's."""
        pairs = [
            (self.pgn.history, fast.pgn.history_weight, fast.pgn.history_bias),
            (self.pgn.gate, fast.pgn.gate_weight, fast.pgn.gate_bias),
            (self.long, fast.long_weight, fast.long_bias),
            (self.row, fast.row_weight.permute(0, 3, 1, 2), fast.row_bias),
            (self.short, fast.short_weight, fast.short_bias),
            (self.head, fast.head_weight, fast.head_bias),
        ]
        for convolution, weight, bias in pairs:
            convolution.weight.copy_(weight.reshape(convolution.weight.shape))
            convolution.bias.copy_(bias.reshape(-1))
