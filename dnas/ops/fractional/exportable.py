"""The fractional-dilation convolution in standard, differentiable PyTorch operations that exporters support.

The rate stays a tensor, so an exported file does not fix its value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_conv2d(x: Tensor, weight: Tensor, rate: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Gather and interpolate the input for each tap, then apply the tap's weights as a 1x1 convolution.

    (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)).
    """
    kernel_size = weight.shape[-1]
    half = kernel_size // 2
    rate = rate.to(device=x.device, dtype=torch.promote_types(rate.dtype, torch.float32))
    total: Tensor | None = None
    for row in range(kernel_size):
        rows = _sample(x, (row - half) * rate, -2, stride)
        for column in range(kernel_size):
            sampled = _sample(rows, (column - half) * rate, -1, stride)
            tap_weight = weight[:, :, row : row + 1, column : column + 1]
            product = F.conv2d(sampled, tap_weight, bias if total is None else None, groups=groups)
            total = product if total is None else total + product
    assert total is not None  # a kernel has at least one tap
    return total


def _sample(x: Tensor, offset: Tensor, axis: int, stride: int) -> Tensor:
    """Sample ``x`` along ``axis`` at every ``stride``-th position plus ``offset``, by linear interpolation.

    Positions outside the image read zero.
    """
    floor = torch.floor(offset)
    fraction = offset - floor
    lower = torch.arange(0, x.shape[axis], stride, device=x.device) + floor.to(torch.int64)
    return _gather(x, lower, 1 - fraction, axis) + _gather(x, lower + 1, fraction, axis)


def _gather(x: Tensor, position: Tensor, factor: Tensor, axis: int) -> Tensor:
    """``factor`` times the values of ``x`` at ``position`` along ``axis``, zero outside the image."""
    size = x.shape[axis]
    inside = (position >= 0) & (position < size)
    factors = torch.where(inside, factor, torch.zeros_like(factor)).to(x.dtype)
    shape = (-1, 1) if axis == -2 else (-1,)
    return x.index_select(axis, position.clamp(0, size - 1)) * factors.view(shape)
