"""The reference form of the fractional-dilation convolution: a deformable convolution with constant offsets.

This is what RegSeg (v3, section 3.4) describes. It is slow, and the other forms are tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnas.ops.fractional.outputs import output_size


def deformable_conv2d(x: Tensor, weight: Tensor, rate: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """``deform_conv2d`` of torchvision with the sampling offset (rate - 1) i for tap i at every position.

    (N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)). The number of groups follows from the shapes.
    Half-precision inputs are computed in float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    kernel_size = weight.shape[-1]
    half = kernel_size // 2
    tap = torch.arange(-half, half + 1, dtype=dtype, device=x.device)
    offset = tap * (rate.to(device=x.device, dtype=dtype) - 1)
    square = (kernel_size, kernel_size)
    pairs = torch.stack([offset[:, None].expand(square), offset[None].expand(square)], dim=-1)  # (row, column)
    offsets = pairs.reshape(1, -1, 1, 1).expand(x.shape[0], -1, *output_size(x, stride))
    bias = None if bias is None else bias.to(dtype)
    from torchvision.ops import deform_conv2d  # takes about a second to import, so only where it is needed

    result: Tensor = deform_conv2d(x.to(dtype), offsets, weight.to(dtype), bias, stride=stride, padding=half)
    return result.to(x.dtype)
