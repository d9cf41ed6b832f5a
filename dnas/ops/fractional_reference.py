"""Two slower forms of the fractional-dilation convolution: by deformable convolution, and by gathering.

Both are made of differentiable PyTorch operations. The first is what RegSeg (v3, section 3.4) describes, and the
reference; the second has no operation that an exporter would not know, and keeps the rate a tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable(x: Tensor, weight: Tensor, rate: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """The deformable convolution of torchvision with the same offsets (r - 1) i at every position.

    The number of groups follows from the shapes. Half precision is computed in float32.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    kernel = weight.shape[-1]
    half = kernel // 2
    index = torch.arange(-half, half + 1, dtype=kind, device=x.device)
    shift = index * (rate.to(device=x.device, dtype=kind) - 1)
    pairs = torch.stack([shift[:, None].expand(kernel, kernel), shift[None].expand(kernel, kernel)], dim=-1)
    height, width = -(-x.shape[-2] // stride), -(-x.shape[-1] // stride)
    offsets = pairs.reshape(1, -1, 1, 1).expand(x.shape[0], -1, height, width)
    bias = None if bias is None else bias.to(kind)
    from torchvision.ops import deform_conv2d  # a second, which all who import operators would pay

    result: Tensor = deform_conv2d(x.to(kind), offsets, weight.to(kind), bias, stride=stride, padding=half)
    return result.to(x.dtype)


def gathered(x: Tensor, weight: Tensor, rate: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """One gather and blend for each row and column of the kernel, and a 1x1 convolution for each tap."""
    kernel = weight.shape[-1]
    rate = rate.to(device=x.device, dtype=torch.promote_types(rate.dtype, torch.float32))
    total: Tensor | None = None
    for row in range(kernel):
        rows = _read(x, (row - kernel // 2) * rate, -2, stride)
        for column in range(kernel):
            values = _read(rows, (column - kernel // 2) * rate, -1, stride)
            taps = weight[:, :, row : row + 1, column : column + 1]
            product = F.conv2d(values, taps, bias if total is None else None, groups=groups)
            total = product if total is None else total + product
    assert total is not None  # a kernel has at least one tap
    return total


def _read(x: Tensor, distance: Tensor, axis: int, stride: int) -> Tensor:
    """The values of ``x`` at ``distance`` from every ``stride``-th position along ``axis``, zero beside the image."""
    low = torch.floor(distance)
    fraction = distance - low
    near = torch.arange(0, x.shape[axis], stride, device=x.device) + low.to(torch.int64)
    return _weighed(x, near, 1 - fraction, axis) + _weighed(x, near + 1, fraction, axis)


def _weighed(x: Tensor, position: Tensor, factor: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    inside = (position >= 0) & (position < size)
    factors = torch.where(inside, factor, torch.zeros_like(factor)).to(x.dtype)
    shape = (-1, 1) if axis == -2 else (-1,)
    return x.index_select(axis, position.clamp(0, size - 1)) * factors.view(shape)
