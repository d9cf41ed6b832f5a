"""A network like DWRSeg whose modules, their number and the widths of whose stages are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.choices import ChoiceConv2d, ChoiceConvNorm, OperatorChoice, RepeatChoice, Width, WidthChoice, widest
from dnas.networks.dwrseg_blocks import StemBlock
from dnas.networks.layers import conv_bn
from dnas.ops import ResizeTo

SCALES = (8, 16, 32)
"""Downsampling rates of the stages."""


class ChoiceSIRModule(nn.Module):
    """DWRSeg's Simple Inverted Residual: a 3x3 convolution to ``expansion`` times the widest width, and a 1x1 one."""

    def __init__(self, width: Width, expansion: int) -> None:
        super().__init__()
        hidden = expansion * widest(width)
        self.region = ChoiceConvNorm(width, hidden, 3)
        self.project = ChoiceConv2d(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features`` (N, width, H, W)."""
        result: Tensor = features + self.project(self.region(features))
        return result


class ChoiceDWRModule(nn.Module):
    """DWRSeg's Dilation-wise Residual with the branches ``rates``; a branch reads half the widest width.

    Only the width of its input and output is a choice. That of the branches is fixed, so that a channel belongs to the
    same branch in all networks. The first branch has twice as many output channels as the others (Table 2, II).
    """

    def __init__(self, width: Width, rates: Sequence[int]) -> None:
        super().__init__()
        chunk = max(1, widest(width) // 2)
        self.region = ChoiceConvNorm(width, chunk * len(rates), 3)
        self.branches = nn.ModuleList(
            nn.Conv2d(chunk, chunk * (1 if i else 2), 3, padding=rate, dilation=rate, groups=chunk, bias=False)
            for i, rate in enumerate(rates)
        )
        channels = chunk * (len(rates) + 1)
        self.norm = nn.BatchNorm2d(channels)
        self.project = ChoiceConv2d(channels, width)

    def forward(self, features: Tensor) -> Tensor:
        """Add the residual to ``features`` (N, width, H, W)."""
        chunks = self.region(features).chunk(len(self.branches), dim=1)
        filtered = [branch(chunk) for branch, chunk in zip(self.branches, chunks, strict=True)]
        result: Tensor = features + self.project(self.norm(torch.cat(filtered, dim=1)))
        return result


class DWRSegSupernet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, classes, H, W).

    ``stem``: channels of the stem. ``widths``: options of the channels at 1/8, 1/16 and 1/32. ``modules``: the largest
    number of modules there, at least one of which is chosen. ``expansions``: of the SIR modules to choose from.
    ``rates``: of the branches of the DWR modules to choose from. ``decoder``: channels of the decoder. It fuses as
    DWRSeg's does, but brings each stage to its own width first, since the widths of the stages vary.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stem: int,
        widths: Sequence[Sequence[int]],
        modules: Sequence[int],
        expansions: Sequence[int],
        rates: Sequence[Sequence[int]],
        decoder: int,
    ) -> None:
        super().__init__()
        self.stem = StemBlock(stem)
        self.stages, self.laterals = nn.ModuleList(), nn.ModuleList()
        inputs: Width = stem
        for scale, options, most in zip(SCALES, widths, modules, strict=True):
            width = WidthChoice(options, name=f"width{scale}")
            places = [
                OperatorChoice(_modules(width, expansions, rates), kind="module", name=f"stage{scale}.{place}")
                for place in range(1, most + 1)
            ]
            depth = RepeatChoice(places, 1, name=f"depth{scale}")
            self.stages.append(nn.Sequential(ChoiceConvNorm(inputs, width, 3, 2), depth))
            self.laterals.append(ChoiceConvNorm(width, decoder, activation=None))
            inputs = width
        self.fuse = conv_bn(len(SCALES) * decoder, decoder, 3)
        self.classifier = nn.Conv2d(decoder, num_classes, 1)
        self.resize = ResizeTo()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images."""
        x = self.stem(images)
        features: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            features.append(lateral(x))
        joined = [features[0], *(self.resize(coarse, features[0]) for coarse in features[1:])]
        logits: Tensor = self.resize(self.classifier(self.fuse(torch.cat(joined, dim=1))), images)
        return logits


def _modules(width: WidthChoice, expansions: Sequence[int], rates: Sequence[Sequence[int]]) -> dict[str, nn.Module]:
    """The modules to choose from; their names are like ``sir_3`` and ``dwr_1_3``."""
    found: dict[str, nn.Module] = {f"sir_{expansion}": ChoiceSIRModule(width, expansion) for expansion in expansions}
    return found | {f"dwr_{'_'.join(map(str, one))}": ChoiceDWRModule(width, one) for one in rates}
