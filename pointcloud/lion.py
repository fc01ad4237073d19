"""LION: linear RNNs over long groups of voxels, at one scale after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.errors import ConfigError
from .operators import create_operator
from .sparse import SubMConv3d
from .voxels import BatchNorm, Voxels, flat_index, largest, scatter_add, unflatten_index
from .windows import cut_groups, window_order

Window = tuple[int, int, int]
RELEASE_PI = 3.1415
"""The release's pi: with more digits its weights give other results."""


class LinearRNNLayer(nn.Module):
    """One operator along windows sorted x-major, then another along windows sorted y-major.

    Args:
        dim: Features.
        window: Voxels of a window along x, y and z.
        group: Voxels of a sequence.
        operator: As of :func:`~scanweave.pointcloud.operators.create_operator`, with its options.
        shifted: Whether the windows begin half a window before the grid.
        drop_path: Chance that a group skips an operator in training.
        recompute: Whether training keeps no activations of the operators and computes them again.
        depth: Operators in a row in the whole network.
        options: The operator's own arguments.

    Source:
        Liu et al., LION (2024), section 3.2.
    """

    def __init__(
        self,
        dim: int,
        window: Window,
        group: int,
        operator: str,
        *,
        shifted: bool = False,
        drop_path: float = 0.0,
        recompute: bool = False,
        depth: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.window, self.group, self.shifted, self.recompute = window, group, shifted, recompute
        self.blocks = nn.ModuleList(create_operator(operator, dim, drop_path, depth, **(options or {})) for _ in "xy")

    def forward(self, voxels: Voxels) -> Voxels:
        """Mix voxels of the same batch entry, within groups."""
        if not len(voxels):
            return voxels
        counts = torch.bincount(voxels.coords[:, 0], minlength=voxels.batch_size)
        groups = cut_groups(counts, self.group)
        x = voxels.features
        for along, block in zip("xy", self.blocks, strict=True):
            order = window_order(voxels, self.window, along, self.shifted)
            laid = x[order[groups.take]].view(-1, self.group, x.shape[1])
            if self.recompute and self.training and torch.is_grad_enabled():
                laid = checkpoint(block, laid, use_reentrant=False)
            else:
                laid = block(laid)
            x = torch.empty_like(x).index_copy(0, order, laid.flatten(0, 1)[groups.put].to(x.dtype))
        return voxels.with_features(x)


class LearnedPosition(nn.Module):
    """What a voxel's place in the grid adds to its features: an MLP of coordinates scaled to -pi .. pi.

    Args:
        dim: Features.

    Source:
        Liu et al., LION (2024), section 3.1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        norm = BatchNorm(dim, eps=1e-5, momentum=0.1)
        self.position_embedding_head = nn.Sequential(nn.Linear(3, dim), norm, nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, voxels: Voxels) -> Tensor:
        """Return (V, dim)."""
        size = voxels.features.new_tensor(voxels.shape)
        place = (voxels.coords[:, 1:] - size / 2) / size * 2 * RELEASE_PI
        y: Tensor = self.position_embedding_head(place.flip(1))
        return y


class VoxelMerge(nn.Module):
    """The 3D spatial feature descriptor, then voxels of a coarser grid: the norm of the sum of those in each.

    The descriptor is ``gelu(norm(conv(x)))``, a submanifold convolution of 3 x 3 x 3. With ``generate``, the voxels of
    each batch entry whose features are largest in the mean give rise to four new ones before they are merged, at its
    diagonal neighbours in x and y, with zeros that what follows fills; where there is one already nothing changes.

    Args:
        dim: Features.
        scale: Fine voxels in a coarse one along x, y and z.
        generate: Share of the voxels that give rise to new ones.

    Source:
        Liu et al., LION (2024), sections 3.3 (descriptor), 3.2 (merging) and 3.4 (generation).
    """

    def __init__(self, dim: int, scale: Window, generate: float = 0.0) -> None:
        super().__init__()
        self.scale, self.generate = scale, generate
        self.sub_conv = nn.Sequential(SubMConv3d(dim, dim), nn.LayerNorm(dim), nn.GELU())
        self.norm = nn.LayerNorm(dim)

    def forward(self, voxels: Voxels) -> tuple[Voxels, Tensor]:
        """Return the coarse voxels, and for each row that went in, new ones last, the coarse voxel's row."""
        convolution, norm, gelu = self.sub_conv
        voxels = convolution(voxels)
        voxels = voxels.with_features(gelu(norm(voxels.features)))
        features, coords = voxels.features, voxels.coords
        if self.generate:
            new = self._generated(voxels)
            features = torch.cat([features, features.new_zeros(len(new), features.shape[1])])
            coords = torch.cat([coords, new])
        per = coords.new_tensor([1, *self.scale[::-1]])
        z, y, x = (-(-n // s) for n, s in zip(voxels.shape, self.scale[::-1], strict=True))
        # Coarse voxels stand in the order of batch entry, x, y, z.
        turned = (coords // per)[:, [0, 3, 2, 1]]
        flat, inverse = torch.unique(flat_index(turned, (x, y, z)), return_inverse=True)
        merged = self.norm(scatter_add(features, inverse, len(flat)))
        found = unflatten_index(flat, (x, y, z))[:, [0, 3, 2, 1]]
        return Voxels(merged, found, (z, y, x), voxels.batch_size), inverse

    def _generated(self, voxels: Voxels) -> Tensor:
        strength, entry = voxels.features.detach().mean(1), voxels.coords[:, 0]
        counts = torch.bincount(entry, minlength=voxels.batch_size)
        chosen = voxels.coords[largest(strength, entry, (counts.double() * self.generate).long())]
        steps = chosen.new_tensor([[0, 0, 1, 1], [0, 0, -1, -1], [0, 0, 1, -1], [0, 0, -1, 1]])
        new = (chosen + steps.unsqueeze(1)).flatten(0, 1)
        top = new.new_tensor([voxels.batch_size - 1, *(n - 1 for n in voxels.shape)])
        return torch.minimum(new.clamp(min=0), top)  # at the grid's edge they stay in it


class LIONBlock(nn.Module):
    """Layers at ever coarser voxels, then back: each fine voxel gets what its coarse one found.

    Down: ``x = layer(x + position(x))``, then a merge; up: ``x = norm(x_coarse[its voxel] + x_fine)`` after a layer.
    The second layer of each pair has shifted windows.

    Args:
        dim: Features.
        window: Voxels of a window along x, y and z.
        group: Voxels of a sequence.
        operator: As of :func:`~scanweave.pointcloud.operators.create_operator`.
        scales: For each layer down, how many voxels are merged along x, y and z.
        drop_path: Chance that a group skips an operator, for the layers down and up.
        kwargs: As of :class:`LinearRNNLayer`.

    Source:
        Liu et al., LION (2024), figure 3 and section 3.2.
    """

    def __init__(
        self,
        dim: int,
        window: Window,
        group: int,
        operator: str,
        *,
        scales: Sequence[Window] = ((2, 2, 2), (2, 2, 2)),
        drop_path: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        **kwargs: Any,
    ) -> None:
        super().__init__()

        def layer(index: int, rate: float) -> LinearRNNLayer:
            shifted = index % 2 == 1
            return LinearRNNLayer(dim, window, group, operator, shifted=shifted, drop_path=rate, **kwargs)

        depth = len(scales)
        self.encoder = nn.ModuleList(layer(i, drop_path[i]) for i in range(depth))
        self.pos_emb_list = nn.ModuleList(LearnedPosition(dim) for _ in scales)
        self.downsample_list = nn.ModuleList(VoxelMerge(dim, scale) for scale in scales)
        self.decoder = nn.ModuleList(layer(i, drop_path[depth + i]) for i in range(depth))
        self.decoder_norm = nn.ModuleList(nn.LayerNorm(dim) for _ in scales)

    def forward(self, voxels: Voxels) -> Voxels:
        """Mix voxels; the same ones come out."""
        above: list[tuple[Voxels, Tensor]] = []
        for layer, position, merge in zip(self.encoder, self.pos_emb_list, self.downsample_list, strict=True):
            fine = layer(voxels.with_features(voxels.features + position(voxels)))
            voxels, inverse = merge(fine)
            above.append((fine, inverse))
        for layer, norm, (fine, inverse) in zip(self.decoder, self.decoder_norm, reversed(above), strict=True):
            coarse = layer(voxels).features
            voxels = fine.with_features(norm(coarse[inverse] + fine.features))
        return voxels


class LION(nn.Module):
    """The backbone: blocks of linear RNNs, the grid's height halved after each, with voxels generated on the way.

    Args:
        in_channels: Features of the voxels that come in.
        grid_height: Voxels of the grid along z.
        operator: One of LION's five, ``mamba``, ``rwkv``, ``retnet``, ``xlstm`` and ``ttt``, or any registered mixer of
            series.
        operator_options: The registered mixer's own arguments.
        dim: Features inside.
        windows: Voxels of each block's windows along x, y and z.
        groups: Voxels of each block's sequences.
        last_window: The window of the layer after the last block.
        last_group: The length of its sequences.
        generate: Share of the voxels that give rise to four new ones after each block.
        drop_path: Chance that a group skips the last operator in training; it grows linearly from 0.
        recompute: Whether training keeps no activations of the operators and computes them again.

    Attributes:
        out_channels: Channels of the map seen from above that comes out.

    Raises:
        ConfigError: The height cannot be halved so often, or an argument's lengths differ.

    Source:
        Liu et al., LION: linear group RNN for 3D object detection in point clouds (2024), section 3.
    """

    def __init__(
        self,
        in_channels: int,
        grid_height: int,
        *,
        operator: str = "mamba",
        operator_options: dict[str, Any] | None = None,
        dim: int = 64,
        windows: Sequence[Window] = ((13, 13, 32), (13, 13, 16), (13, 13, 8), (13, 13, 4)),
        groups: Sequence[int] = (4096, 2048, 1024, 512),
        last_window: Window = (13, 13, 2),
        last_group: int = 256,
        generate: float = 0.2,
        drop_path: float = 0.2,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if len(windows) != len(groups):
            raise ConfigError(
                f"LION: found {len(windows)} windows and {len(groups)} groups, expected one of each a block"
            )
        if grid_height % 2 ** len(windows):
            raise ConfigError(
                f"LION: the grid's height is {grid_height} voxels, expected a multiple of {2 ** len(windows)}: it is "
                f"halved after each of {len(windows)} blocks"
            )
        if in_channels != dim:
            raise ConfigError(f"LION: voxels have {in_channels} features, expected dim = {dim}")
        layers = 4 * len(windows) + 1
        common: dict[str, Any] = {
            "operator": operator, "options": operator_options, "recompute": recompute, "depth": 2 * layers
        }  # fmt: skip
        rates = torch.linspace(0, drop_path, layers).tolist()
        self.blocks = nn.ModuleList(
            LIONBlock(dim, window, group, drop_path=rates[4 * i : 4 * i + 4], **common)
            for i, (window, group) in enumerate(zip(windows, groups, strict=True))
        )
        self.merges = nn.ModuleList(VoxelMerge(dim, (1, 1, 2), generate) for _ in windows)
        self.last = LinearRNNLayer(dim, last_window, last_group, shifted=True, drop_path=rates[-1], **common)
        self.out_channels = dim * (grid_height >> len(windows))

    def forward(self, voxels: Voxels) -> Voxels:
        """Mix voxels; those that come out are as many times lower as there are blocks, and more."""
        for block, merge in zip(self.blocks, self.merges, strict=True):
            voxels, _ = merge(block(voxels))
        y: Voxels = self.last(voxels)
        return y
