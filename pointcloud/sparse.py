"""Sparse convolutions of voxels: spconv's, on a CPU as on a GPU."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from torch import nn

from ..core.errors import ConfigError
from .voxels import Voxels

Triple = int | tuple[int, int, int]


@cache
def _spconv() -> Any:
    """Import spconv when it is first needed: it takes seconds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about how spconv marks its functions
            import spconv.pytorch
    except ImportError as error:
        raise ConfigError(
            f"sparse convolutions need spconv, which did not import ({error}): `pip install spconv-cu120` up to "
            "CPython 3.11, `pip install spconv-cu126` from 3.12; both run without a GPU. PointPillars needs neither"
        ) from error
    return spconv.pytorch


def _convolve(conv: Any, voxels: Voxels) -> Any:
    """Return spconv's tensor of the result; features in half precision are widened on a CPU."""
    library, features = _spconv(), voxels.features
    on_cpu = features.device.type == "cpu"
    # A CPU has this algorithm alone, and it for float32 and float64.
    conv.algo = library.ConvAlgo.Native if on_cpu else library.ConvAlgo.MaskImplicitGemm
    wide = features.float() if on_cpu and features.dtype.itemsize == 2 else features
    # It reads coordinates as if they were contiguous; those that `nonzero` gives are not.
    coords = voxels.coords.int().contiguous()
    sparse = library.SparseConvTensor(wide.contiguous(), coords, list(voxels.shape), voxels.batch_size)
    sparse.indice_dict = voxels.pairs
    return conv(sparse)


class SubMConv3d(nn.Module):
    """Submanifold convolution: the output has the voxels of the input, and sees no others.

    ``y_u = sum_o W_o x_{u + o}`` over the offsets o of the kernel at which there is a voxel.

    Args:
        in_channels: Features of the input.
        out_channels: Features of the output.
        kernel_size: Voxels a side, odd.

    Raises:
        ConfigError: spconv is not there.

    Source:
        Graham et al., 3D semantic segmentation with submanifold sparse convolutional networks (2018), section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        key = f"submanifold{kernel_size}"
        self.conv = _spconv().SubMConv3d(in_channels, out_channels, kernel_size, bias=False, indice_key=key)

    def forward(self, voxels: Voxels) -> Voxels:
        """Convolve voxels; those of a batch entry see no other's."""
        if not len(voxels):
            return voxels.with_features(voxels.features.new_zeros(0, self.conv.out_channels))
        y = _convolve(self.conv, voxels)
        voxels.pairs.update(y.indice_dict)
        return voxels.with_features(y.features.to(voxels.features.dtype))


class SparseConv3d(nn.Module):
    """Strided convolution: the output has a voxel wherever the kernel meets one of the input.

    Args:
        in_channels: Features of the input.
        out_channels: Features of the output.
        kernel_size: Voxels a side, one number or those along z, y and x; so are the next two.
        stride: Voxels from one output to the next.
        padding: Empty voxels around the grid.

    Raises:
        ConfigError: spconv is not there.

    Source:
        Yan et al., SECOND: sparsely embedded convolutional detection (2018), section 3.1.2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Triple, stride: Triple = 1, padding: Triple = 0
    ) -> None:
        super().__init__()
        self.conv = _spconv().SparseConv3d(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, voxels: Voxels) -> Voxels:
        """Convolve voxels; those of a batch entry see no other's."""
        conv = self.conv
        if not len(voxels):
            sizes = zip(voxels.shape, conv.kernel_size, conv.stride, conv.padding, strict=True)
            z, y, x = ((n + 2 * padding - kernel) // stride + 1 for n, kernel, stride, padding in sizes)
            return Voxels(voxels.features.new_zeros(0, conv.out_channels), voxels.coords, (z, y, x), voxels.batch_size)
        made = _convolve(conv, voxels)
        z, y, x = made.spatial_shape
        features = made.features.to(voxels.features.dtype)
        return Voxels(features, made.indices.long(), (z, y, x), voxels.batch_size)
