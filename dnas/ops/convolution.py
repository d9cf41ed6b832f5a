"""The discrete operators of FasterSeg, from which derived networks are built.

All map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), for any H and W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.ops.resampling import halve, resize


class ConvNormAct(nn.Module):
    """Convolution with "same" padding and no bias, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.relu(self.norm(self.conv(x)))


class ConvBlock(nn.Sequential):
    """One or two 3x3 convolutions; the first has the stride (FasterSeg's "conv" and "conv x2")."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, depth: int) -> None:
        layers = [ConvNormAct(in_channels, out_channels, stride=stride)]
        layers += [ConvNormAct(out_channels, out_channels) for _ in range(depth - 1)]
        super().__init__(*layers)


class ZoomedConv(nn.Module):
    """Halve the resolution bilinearly, convolve, and restore it (FasterSeg section 3.1.2, "zoomed conv" and "x2").

    With stride 2 the last step is omitted: the halved map is the result.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, depth: int) -> None:
        super().__init__()
        self.stride = stride
        self.block = ConvBlock(in_channels, out_channels, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return zoomed(x, self.block, self.stride)


class FactorizedReduce(nn.Module):
    """The skip connection of stride 2: two strided 1x1 convolutions over interleaved pixels, concatenated.

    The second convolution is offset by one row and one column, so that half of the pixels are read instead of a
    quarter. Maps of odd size are padded with a zero row or column at the end.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        x = pad_to_even(x)
        return F.relu(self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1)))


def pad_to_even(x: Tensor) -> Tensor:
    """Append a zero row if H is odd and a zero column if W is odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


def zoomed(x: Tensor, block: Callable[[Tensor], Tensor], stride: int) -> Tensor:
    """Apply ``block`` at half the resolution of ``x``; upsample the result if ``stride`` is 1."""
    result = block(halve(x))
    return resize(result, (x.shape[-2], x.shape[-1])) if stride == 1 else result
