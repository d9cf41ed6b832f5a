"""EfficientNet with Fused-MBConv blocks, the backbone of ESeg-Lite."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from dnas.networks.layers import conv_bn


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


#: EfficientNet-B0 (arXiv 1905.11946, Table 1).
_STEM_CHANNELS = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def scale_channels(channels: int, width: float) -> int:
    """``channels * width`` rounded to a multiple of 8, but never by more than 10 % down (EfficientNet)."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


class FusedMBConv(nn.Module):
    """Inverted residual block whose expansion and depth-wise convolutions are fused into one regular convolution.

    ReLU, no squeeze and excitation. (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)). With an expansion of
    1 it is a single convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        if expansion == 1:
            self.block = conv_bn(in_channels, out_channels, kernel, stride=stride)
        else:
            hidden = in_channels * expansion
            self.block = nn.Sequential(
                conv_bn(in_channels, hidden, kernel, stride=stride), conv_bn(hidden, out_channels, 1, activation=None)
            )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``features``; with a residual connection if input and output have the same shape."""
        result: Tensor = self.block(features)
        return features + result if self.residual else result


class FusedEfficientNetBackbone(nn.Module):
    """EfficientNet at any ``width`` and ``depth`` with every MBConv replaced by Fused-MBConv (ESeg, section 3.3).

    Images (N, 3, H, W) to feature maps at 1/8, 1/16 and 1/32; kernels and expansion ratios are EfficientNet's.
    """

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        channels = scale_channels(_STEM_CHANNELS, width)
        self.stem = conv_bn(3, channels, 3, stride=2)
        # One group of stages per resolution; the maps at 1/2 and 1/4 are not returned.
        groups: list[list[nn.Module]] = [[]]
        ends: list[int] = []
        for stage in _STAGES:
            if stage.stride == 2:
                groups.append([])
                ends.append(channels)
            for index in range(math.ceil(stage.blocks * depth)):
                out_channels = scale_channels(stage.channels, width)
                stride = stage.stride if index == 0 else 1
                groups[-1].append(FusedMBConv(channels, out_channels, stage.kernel, stride, stage.expansion))
                channels = out_channels
        ends.append(channels)
        self.stages = nn.ModuleList(nn.Sequential(*group) for group in groups)
        self.channels: tuple[int, ...] = tuple(ends[2:])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps at 1/8, 1/16 and 1/32 of ``images``."""
        features = self.stem(images)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return tuple(maps[2:])
