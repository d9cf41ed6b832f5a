"""The modules of DWRSeg: stem block, Simple Inverted Residual (SIR), Dilation-wise Residual (DWR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn

#: Expansion ratio of the first convolution of an SIR module (lambda, Table 2 VI).
SIR_EXPANSION = 3


class StemBlock(nn.Module):
    """Images (N, 3, H, W) to (N, channels, H / 4, W / 4): parallel convolution and max pooling (Fig. 6a).

    As in BiSeNetV2, but without an activation after the first convolution, and the last convolution keeps all channels
    of the concatenation.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        base = channels // 2
        self.enter = conv_bn(3, base, 3, stride=2, activation=None)
        self.convolve = nn.Sequential(conv_bn(base, base, 1), conv_bn(base, base, 3, stride=2))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = conv_bn(2 * base, channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Features at 1/4 of ``images``."""
        features = self.enter(images)
        fused: Tensor = self.fuse(torch.cat([self.convolve(features), self.pool(features)], dim=1))
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

    Region residualisation: a 3x3 convolution to C / 2 channels per branch (with three branches 1.5 times the input, the
    best beta of Table 2 III). Semantic residualisation: each branch applies a depth-wise convolution with its entry of
    ``dilations`` to its chunk of the channels; the first branch has twice as many output channels as the others (2:1:1,
    Table 2 II). Then BatchNorm on the concatenation and a 1x1 convolution without BatchNorm (situation 5 of Table 2 IV
    has one).
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        chunk = channels // 2
        widths = [2 * chunk] + [chunk] * (len(dilations) - 1)
        self.region = conv_bn(channels, chunk * len(dilations), 3)
        self.branches = nn.ModuleList(
            nn.Conv2d(chunk, width, 3, padding=dilation, dilation=dilation, groups=chunk, bias=False)
            for width, dilation in zip(widths, dilations, strict=True)
        )
        self.norm = nn.BatchNorm2d(sum(widths))
        self.project = nn.Conv2d(sum(widths), channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features``."""
        chunks = self.region(features).chunk(len(self.branches), dim=1)
        filtered = [branch(chunk) for branch, chunk in zip(self.branches, chunks, strict=True)]
        result: Tensor = features + self.project(self.norm(torch.cat(filtered, dim=1)))
        return result
