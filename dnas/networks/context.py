"""Context modules on the last map of a backbone: ASPP and PPM. Both map (N, C, H, W) to (N, out, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.ops import resize


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabv3 (arXiv 1706.05587, section 3.3).

    Parallel 3x3 convolutions with dilation ``rates`` (1 is a 1x1 convolution) and a global average, concatenated and
    projected.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, rates: Sequence[int] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(in_channels, out_channels, rate) for rate in rates)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(in_channels, out_channels, 1))
        self.project = conv_bn(out_channels * (len(rates) + 1), out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Context of ``features``."""
        whole = self.whole(features).expand(-1, -1, *features.shape[-2:])
        joined = torch.cat([*(branch(features) for branch in self.branches), whole], dim=1)
        result: Tensor = self.project(joined)
        return result


def _branch(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    if rate == 1:
        return conv_bn(in_channels, out_channels, 1)
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class PPM(nn.Module):
    """Pyramid pooling module of PSPNet (arXiv 1612.01105, section 3.2).

    The map is averaged over a grid of each of ``bins``, projected to an equal share of its channels and upsampled; all
    are concatenated with the map and convolved.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        share = in_channels // len(self.bins)
        self.projects = nn.ModuleList(conv_bn(in_channels, share, 1) for _ in self.bins)
        self.fuse = conv_bn(in_channels + share * len(self.bins), out_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Context of ``features``."""
        size = features.shape[-2:]
        pooled = [
            resize(project(F.adaptive_avg_pool2d(features, count)), size)
            for count, project in zip(self.bins, self.projects, strict=True)
        ]
        result: Tensor = self.fuse(torch.cat([features, *pooled], dim=1))
        return result
