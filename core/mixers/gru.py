"""GRU, and how a cell of PyTorch's becomes a mixer."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..registry import Mixer, State, register_mixer


class TorchRNN(Mixer):
    """A one-layer recurrent network of PyTorch's, of width dim, in the dtype of its weights whatever autocast says.

    The weights have the names and initial values of :mod:`torch.nn`'s layer, whose own module torch.compile refuses.

    Args:
        dim: Features of the input and of the output.
        layer: The torch.nn layer, of width dim, to take the weights from.
        states: The names of its state's tensors.
    """

    def __init__(self, dim: int, layer: nn.RNNBase, states: tuple[str, ...]) -> None:
        super().__init__(dim, state_shapes=dict.fromkeys(states, (dim,)))
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    @abstractmethod
    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run over (B, L, dim) with PyTorch's fused layer."""

    @abstractmethod
    def cell(self, x: Tensor, state: State) -> State:
        """Take one step on (B, dim) with PyTorch's cell; the state's first tensor is the output."""

    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """Run the layer between resets; the state is the layer's, without its axis of layers."""
        dtype = self.weights[0].dtype
        x, parts = x.to(dtype), tuple(part.to(dtype) for part in state)
        # Autocast's bfloat16 LSTM on a CPU fails inside oneDNN.
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling():
                y, parts = self._unroll(x, parts, reset)
            else:
                y, parts = self._run_pieces(x, parts, reset)
        return y, tuple(part.to(before.dtype) for part, before in zip(parts, state, strict=True))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The layer's parameters, in the order that PyTorch's functions take them."""
        return tuple(self.parameters())

    def _run_pieces(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        cuts = [] if reset is None else reset.any(0).nonzero().flatten().tolist()
        bounds = [0, *(cut for cut in cuts if cut > 0), x.shape[1]]
        outputs = []
        for start, stop in pairwise(bounds):
            y, state = self.run(x[:, start:stop], state if reset is None else _restart(state, reset[:, start]))
            outputs.append(y)
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state

    def _unroll(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        # Traced, torch.gru is unrolled by PyTorch anyway and torch.lstm has no gradient on a CPU (an oneDNN node).
        outputs = []
        for t, x_t in enumerate(x.unbind(1)):
            state = self.cell(x_t, state if reset is None else _restart(state, reset[:, t]))
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


@register_mixer("gru")
class GRU(TorchRNN):
    """PyTorch's GRU: ``h_t = (1 - z) * n + z * h_{t-1}``, ``n = tanh(W x + b + r * (U h_{t-1} + c))``.

    Compiled or exported, it is unrolled over the length.

    Args:
        dim: Features of the input and of the output.

    Source:
        Cho et al., Learning phrase representations using RNN encoder-decoder (2014), section 2.3; equations as in
        torch.nn.GRU.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, nn.GRU(dim, dim), ("h",))

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run torch.gru."""
        (h,) = state
        y, h = torch.gru(x, h.unsqueeze(0), self.weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return y, (h.squeeze(0),)

    def cell(self, x: Tensor, state: State) -> State:
        """Take torch.gru_cell's step."""
        return (torch.gru_cell(x, state[0], *self.weights),)


def _restart(state: State, reset: Tensor) -> State:
    return tuple(part.masked_fill(reset.unsqueeze(-1), 0) for part in state)
