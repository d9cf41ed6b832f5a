"""Blocks of networks with branches of different resolution: residual blocks and pyramid pooling (DDRNet, PIDNet)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.ops import resize

_POOLS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))
"""Kernel, stride and padding of the average poolings of the pyramid (DDRNet, Fig. 5)."""


class ResidualBlock(nn.Module):
    """ResNet's basic block, or with ``bottleneck`` its bottleneck, whose result has twice ``channels``.

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)). ``activate`` applies ReLU after the addition.
    """

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, bottleneck: bool = False, activate: bool = True
    ) -> None:
        super().__init__()
        self.out_channels = 2 * channels if bottleneck else channels
        if bottleneck:
            self.residual = nn.Sequential(
                conv_bn(in_channels, channels, 1),
                conv_bn(channels, channels, 3, stride=stride),
                conv_bn(channels, self.out_channels, 1, activation=None),
            )
        else:
            self.residual = nn.Sequential(
                conv_bn(in_channels, channels, 3, stride=stride), conv_bn(channels, channels, 3, activation=None)
            )
        same = stride == 1 and in_channels == self.out_channels
        self.shortcut: nn.Module = (
            nn.Identity() if same else conv_bn(in_channels, self.out_channels, 1, stride=stride, activation=None)
        )
        self.activation: nn.Module = nn.ReLU() if activate else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``features``."""
        result: Tensor = self.activation(self.residual(features) + self.shortcut(features))
        return result


def residual_stage(in_channels: int, channels: int, blocks: int, *, stride: int = 1) -> nn.Sequential:
    """``blocks`` basic blocks, the first of ``stride``, the last without ReLU."""
    return nn.Sequential(
        *(
            ResidualBlock(
                in_channels if index == 0 else channels,
                channels,
                stride=stride if index == 0 else 1,
                activate=index + 1 < blocks,
            )
            for index in range(blocks)
        )
    )


def before(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """BatchNorm and ReLU before a convolution without bias."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), convolution)


class PyramidPooling(nn.Module):
    """DDRNet's DAPPM: poolings of growing size, each added to the one before; with ``parallel`` PIDNet's PAPPM.

    (N, in, H, W) -> (N, out, H, W); ``width`` is that of each of five branches. The parallel form adds the first branch
    to all others and convolves them together, in four groups.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, parallel: bool = False) -> None:
        super().__init__()
        self.pools = nn.ModuleList([*(nn.AvgPool2d(*pool) for pool in _POOLS), nn.AdaptiveAvgPool2d(1)])
        self.projects = nn.ModuleList(before(in_channels, width, 1) for _ in range(len(self.pools) + 1))
        count = len(self.pools)
        if parallel:
            self.processes = nn.ModuleList([before(count * width, count * width, 3, groups=count)])
        else:
            self.processes = nn.ModuleList(before(width, width, 3) for _ in range(count))
        self.compress = before((count + 1) * width, out_channels, 1)
        self.shortcut = before(in_channels, out_channels, 1)
        self.parallel = parallel

    def forward(self, features: Tensor) -> Tensor:
        """Context of ``features``."""
        size = features.shape[-2:]
        first = self.projects[0](features)
        pooled = [
            resize(project(pool(features)), size)
            for pool, project in zip(self.pools, list(self.projects)[1:], strict=True)
        ]
        joined = [first, *(self._together(first, pooled) if self.parallel else self._in_turn(first, pooled))]
        result: Tensor = self.compress(torch.cat(joined, dim=1)) + self.shortcut(features)
        return result

    def _in_turn(self, first: Tensor, pooled: Sequence[Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        for branch, process in zip(pooled, self.processes, strict=True):
            results.append(process(branch + (results[-1] if results else first)))
        return results

    def _together(self, first: Tensor, pooled: Sequence[Tensor]) -> list[Tensor]:
        return [self.processes[0](torch.cat([branch + first for branch in pooled], dim=1))]


class SegmentationHead(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, BatchNorm, ReLU and 1x1 convolution to class logits."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            before(in_channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, classes, H, W)."""
        logits: Tensor = self.layers(features)
        return logits
