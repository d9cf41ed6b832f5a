"""The encoder: Fused-MBConv blocks (ESeg, section 3.3) whose widths, expansions and numbers are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dnas.choices import ChoiceConvNorm, RepeatChoice, Width, WidthChoice, widest


class ChoiceFusedMBConv(nn.Module):
    """A kxk convolution to the expanded width and a 1x1 convolution to ``width``; residual with stride 1."""

    def __init__(self, inputs: Width, width: Width, expansions: Sequence[int], kernel: int, stride: int = 1) -> None:
        super().__init__()
        hidden = WidthChoice([expansion * widest(width) for expansion in expansions], kind="expansion")
        self.expand = ChoiceConvNorm(inputs, hidden, kernel, stride)
        self.project = ChoiceConvNorm(hidden, width, activation=None)
        self.residual = stride == 1

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        result: Tensor = self.project(self.expand(features))
        return features + result if self.residual else result


class ChoiceEncoder(nn.Module):
    """Images (N, 3, H, W) to maps at 1/4, 1/8, 1/16 and 1/32, whose widths are ``widths``."""

    def __init__(
        self, stem: int, widths: Sequence[Sequence[int]], depths: Sequence[int], expansions: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = ChoiceConvNorm(3, stem, 3, 2)
        self.widths = [WidthChoice(options, name=f"p{level}") for level, options in enumerate(widths, start=2)]
        inputs: Width = stem
        self.stages = nn.ModuleList()
        for level, (width, depth) in enumerate(zip(self.widths, depths, strict=True), start=2):
            kernel = 5 if level in (3, 5) else 3  # EfficientNet's
            blocks = [ChoiceFusedMBConv(width, width, expansions, kernel) for _ in range(depth - 1)]
            first = ChoiceFusedMBConv(inputs, width, expansions, kernel, 2)
            self.stages.append(nn.Sequential(first, RepeatChoice(blocks, name=f"depth_p{level}")))
            inputs = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """P2 to P5."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
