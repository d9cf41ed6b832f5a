"""DWRSeg with modules whose dilated branches compete for one regional feature map (section 4.2, Fig. 7)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dnas.choices import InputChoice, Lazy
from dnas.networks.dwrseg import DWRSegDecoder
from dnas.networks.dwrseg_blocks import StemBlock
from dnas.networks.layers import conv_bn, scaled
from dnas.ops import ResizeTo

STAGES = (8, 16, 32)
"""Downsampling rates of the stages: low, middle and high."""


def subsets(rates: Sequence[int]) -> list[tuple[int, ...]]:
    """The non-empty subsets of ``rates``, small ones first."""
    return [chosen for size in range(1, len(rates) + 1) for chosen in itertools.combinations(rates, size)]


def branch_choice(rates: Sequence[int], name: str) -> InputChoice:
    """Which branches are kept; the options are named like ``1+3``."""
    return InputChoice(("+".join(map(str, one)) for one in subsets(rates)), kind="branches", name=name)


class DilatedBranch(nn.Module):
    """Depth-wise dilated convolution, BatchNorm and point-wise convolution, (N, C, H, W) -> (N, C, H, W).

    The sum of such branches is what the module of Fig. 7 computes: a point-wise convolution of the concatenation.
    """

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.point_wise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, region: Tensor) -> Tensor:
        """The branch's part of the residual."""
        out: Tensor = self.point_wise(self.norm(self.dilated(region)))
        return out


class CompetingModule(nn.Module):
    """Residual module, (N, C, H, W) -> (N, C, H, W): a 3x3 convolution, and branches of different dilation rates.

    All branches read the whole regional feature map, so that they compete for it. ``choice`` says which are kept.
    """

    def __init__(self, channels: int, rates: Sequence[int], choice: InputChoice) -> None:
        super().__init__()
        self.region = conv_bn(channels, channels, 3)
        self.branches = nn.ModuleDict({str(rate): DilatedBranch(channels, rate) for rate in rates})
        self.choice = choice

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features``."""
        region = self.region(features)
        branches = {rate: Lazy(partial(branch, region)) for rate, branch in self.branches.items()}
        sums = [Lazy(partial(_sum, [branches[str(rate)] for rate in one])) for one in subsets([*map(int, branches)])]
        residual: Tensor = self.choice(sums)
        return features + residual


class CompetingNetwork(nn.Module):
    """DWRSeg whose SIR and DWR modules are :class:`CompetingModule`: images (N, 3, H, W) -> logits (N, classes, H, W).

    ``modules``: numbers of modules in the stages at 1/8, 1/16 and 1/32. ``width``: factor of all channels.
    ``by_module``: whether every module has a choice of its own, instead of one for its stage.
    """

    def __init__(
        self,
        num_classes: int,
        modules: Sequence[int],
        rates: Sequence[int],
        width: float = 1.0,
        by_module: bool = False,
    ) -> None:
        super().__init__()
        at8, at16, at32 = channels = tuple(scaled(count, width, 16) for count in (64, 128, 128))
        self.stem = StemBlock(at8)
        enter = (
            conv_bn(at8, at8, 3, stride=2),
            nn.Sequential(nn.Conv2d(at8, at16, 2, 2, bias=False), nn.BatchNorm2d(at16), nn.ReLU()),
            conv_bn(at16, at32, 3, stride=2),
        )
        self.stages = nn.ModuleList()
        for scale, first, count, number in zip(STAGES, enter, channels, modules, strict=True):
            shared = branch_choice(rates, f"stage{scale}")
            made = [
                CompetingModule(count, rates, branch_choice(rates, f"stage{scale}.{i}") if by_module else shared)
                for i in range(number)
            ]
            self.stages.append(nn.Sequential(first, *made))
        self.decoder = DWRSegDecoder((at8, at16, at32), width)
        self.classifier = nn.Conv2d(self.decoder.out_channels, num_classes, 1)
        self.resize = ResizeTo()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images."""
        features: list[Tensor] = []
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        logits: Tensor = self.resize(self.classifier(self.decoder(tuple(features))), images)
        return logits


def _sum(branches: Sequence[Lazy]) -> Tensor:
    return torch.stack([branch.value() for branch in branches]).sum(0) if len(branches) > 1 else branches[0].value()
