"""The modules of DWRSeg: stem block, Simple Inverted Residual (SIR), Dilation-wise Residual (DWR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn

#: How many times its input channels the first convolution of an SIR module has (lambda, Table 2 VI).
SIR_EXPANSION = 3


class StemBlock(nn.Module):
    """Images (N, 3, H, W) to (N, 64, H / 4, W / 4): convolution and max pooling side by side (Fig. 6a).

    As BiSeNetV2's, but the first convolution has no activation and the last one does not shrink the concatenation.
    """

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        base = self.out_channels // 2
        self.enter = conv_bn(3, base, 3, stride=2, activation=None)
        self.convolve = nn.Sequential(conv_bn(base, base, 1), conv_bn(base, base, 3, stride=2))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = conv_bn(2 * base, self.out_channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Features at 1/4 of ``images``."""
        entered = self.enter(images)
        fused: Tensor = self.fuse(torch.cat([self.convolve(entered), self.pool(entered)], dim=1))
        return fused


class SIRModule(nn.Module):
    """Inverted residual of a 3x3 and a 1x1 convolution, (N, C, H, W) -> (N, C, H, W) (Fig. 4b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = SIR_EXPANSION * channels
        self.region = conv_bn(channels, hidden, 3)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features``."""
        result: Tensor = features + self.project(self.region(features))
        return result


class DWRModule(nn.Module):
    """Two-step residual, (N, C, H, W) -> (N, C, H, W) (Fig. 4a).

    Region residualisation: a 3x3 convolution to C / 2 channels a branch (for three branches 1.5 times the input, the
    best beta of Table 2 III). Semantic residualisation: each branch filters its own share depth-wise at its own
    ``dilations`` entry; the first branch has twice the output channels of the others (2:1:1, Table 2 II). BatchNorm
    on the concatenation, then a 1x1 convolution without BatchNorm (situation 5 of Table 2 IV is the one with it).
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        share = channels // 2
        widths = [2 * share] + [share] * (len(dilations) - 1)
        self.region = conv_bn(channels, share * len(dilations), 3)
        self.branches = nn.ModuleList(
            nn.Conv2d(share, width, 3, padding=dilation, dilation=dilation, groups=share, bias=False)
            for width, dilation in zip(widths, dilations, strict=True)
        )
        self.norm = nn.BatchNorm2d(sum(widths))
        self.project = nn.Conv2d(sum(widths), channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features``."""
        shares = self.region(features).chunk(len(self.branches), dim=1)
        filtered = [branch(share) for branch, share in zip(self.branches, shares, strict=True)]
        result: Tensor = features + self.project(self.norm(torch.cat(filtered, dim=1)))
        return result
