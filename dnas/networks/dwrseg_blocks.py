"""The modules of DWRSeg: stem block, Simple Inverted Residual (SIR), Dilation-wise Residual (DWR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from dnas.config import Field, config
from dnas.networks.layers import conv_bn


@config
class ModuleDesign:
    """The switches of Table 2; the defaults are the paper's choices.

    one_field: each regional feature map is filtered with one receptive field ("SS", experiment I); otherwise all
        branches filter the same map ("MS").
    ratio: output channels of the branches in chunks of the region (alpha, II).
    region: channels of the region, three branches together, relative to the input (beta, III).
    situation: 0, or a change of the non-linearity (IV). Region residualisation without ReLU (1) or without BatchNorm
        (2); semantic residualisation without BatchNorm (3) or with ReLU after it (4); BatchNorm after the last
        convolution (5).
    sir_depthwise: a depth-wise 3x3 convolution with BatchNorm in the SIR modules (V).
    sir_expansion: channels of the first convolution of an SIR module relative to its input (lambda, VI).
    """

    one_field: bool = True
    ratio: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 1, 1)
    region: float = Field(default=1.5, gt=0, le=16)
    situation: int = Field(default=0, ge=0, le=5)
    sir_depthwise: bool = False
    sir_expansion: int = Field(default=3, ge=1)


PAPER_DESIGN = ModuleDesign()


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

    def __init__(self, channels: int, design: ModuleDesign = PAPER_DESIGN) -> None:
        super().__init__()
        hidden = design.sir_expansion * channels
        self.region = conv_bn(channels, hidden, 3)
        if design.sir_depthwise:
            self.region.append(conv_bn(hidden, hidden, 3, groups=hidden, activation=None))
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
    has one). ``design`` changes these choices.
    """

    def __init__(self, channels: int, dilations: Sequence[int], design: ModuleDesign = PAPER_DESIGN) -> None:
        super().__init__()
        chunk = max(1, round(channels * design.region / 3))
        widths = [times * chunk for times, _ in zip(design.ratio, dilations, strict=False)]
        self.one_field = design.one_field
        self.region = _region(channels, chunk * len(dilations) if design.one_field else chunk, design.situation)
        self.branches = nn.ModuleList(
            nn.Conv2d(chunk, width, 3, padding=dilation, dilation=dilation, groups=chunk, bias=False)
            for width, dilation in zip(widths, dilations, strict=True)
        )
        self.norm = _semantic_norm(sum(widths), design.situation)
        self.project: nn.Module = nn.Conv2d(sum(widths), channels, 1, bias=False)
        if design.situation == 5:
            self.project = conv_bn(sum(widths), channels, 1, activation=None)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features``."""
        region = self.region(features)
        count = len(self.branches)
        chunks = region.chunk(count, dim=1) if self.one_field else (region,) * count
        filtered = [branch(chunk) for branch, chunk in zip(self.branches, chunks, strict=True)]
        result: Tensor = features + self.project(self.norm(torch.cat(filtered, dim=1)))
        return result


def _region(in_channels: int, channels: int, situation: int) -> nn.Sequential:
    if situation == 2:
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.ReLU())
    return conv_bn(in_channels, channels, 3, activation=None if situation == 1 else nn.ReLU)


def _semantic_norm(channels: int, situation: int) -> nn.Module:
    if situation == 3:
        return nn.Identity()
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(norm, nn.ReLU()) if situation == 4 else norm
