"""FasterSeg's operators (section 3.1.2) and RegSeg's D block (v3, Fig. 4), with widths and rates that are choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.choices import (
    ChoiceBatchNorm2d,
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceGroupConv2d,
    ChoiceSkip,
    RateChoice,
    Width,
    widest,
)
from dnas.errors import UserError
from dnas.ops.convolution import zoomed

OPERATORS = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2", "d_block")


def choice_operator(name: str, inputs: Width, width: Width, stride: int, upper: float, group_width: int) -> nn.Module:
    """The operator ``name`` from maps of up to ``inputs`` channels to ``width``.

    A skip of stride 2 is a strided 1x1 convolution. ``upper``: bound of the D block's rates. Raises :class:`UserError`
    for an unknown name.
    """
    if name == "skip":
        return ChoiceSkip(width) if stride == 1 else ChoiceConvNorm(inputs, width, 1, stride)
    if name == "d_block":
        return ChoiceDBlock(inputs, width, stride, upper, group_width)
    depth = 2 if name.endswith("_x2") else 1
    if name in ("zoomed_conv", "zoomed_conv_x2"):
        return ChoiceZoomed(_convolutions(inputs, width, 1, depth), stride)
    if name in ("conv", "conv_x2"):
        return _convolutions(inputs, width, stride, depth)
    raise UserError(f"unknown operator {name!r}, expected one of {', '.join(OPERATORS)}")


def _convolutions(inputs: Width, width: Width, stride: int, depth: int) -> nn.Sequential:
    layers = [ChoiceConvNorm(inputs, width, 3, stride)]
    layers += [ChoiceConvNorm(width, width, 3) for _ in range(depth - 1)]
    return nn.Sequential(*layers)


class ChoiceZoomed(nn.Module):
    """Runs ``block`` at half the resolution (FasterSeg's zoomed convolution)."""

    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.block, self.stride = block, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        return zoomed(x, self.block, self.stride)

    def extra_repr(self) -> str:
        """The stride, which matters for the price."""
        return f"stride={self.stride}"


class ChoiceDilatedConv(nn.Module):
    """A group convolution whose channels are divided among branches, each with a rate of its own."""

    def __init__(self, width: Width, rates: Sequence[RateChoice], stride: int, group_width: int) -> None:
        super().__init__()
        share = widest(width) // len(rates)
        self.branches = nn.ModuleList(
            ChoiceGroupConv2d(share, 3, stride, group_width=group_width, dilation=rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        parts = x.chunk(len(self.branches), 1)
        return torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], 1)


class ChoiceSqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the global averages of all channels (SENet)."""

    def __init__(self, width: Width, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            ChoiceConv2d(width, squeezed, bias=True),
            nn.ReLU(),
            ChoiceConv2d(squeezed, width, bias=True, gated=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        gates: Tensor = self.gate(x)
        return x * gates


class ChoiceDBlock(nn.Module):
    """RegSeg's D block: 1x1, two dilated branches, squeeze and excitation, 1x1, and a shortcut."""

    def __init__(self, inputs: Width, width: Width, stride: int, upper: float, group_width: int) -> None:
        super().__init__()
        self.reduce = ChoiceConvNorm(inputs, width)
        self.dilated = ChoiceDilatedConv(
            width, [RateChoice(upper, min(1.5, upper)) for _ in range(2)], stride, group_width
        )
        self.norm = nn.Sequential(ChoiceBatchNorm2d(width, gated=False), nn.ReLU())
        self.attention = ChoiceSqueezeExcite(width, max(1, widest(inputs) // 4))
        self.expand = ChoiceConvNorm(width, width, activation=None)
        pool = [nn.AvgPool2d(stride, stride, ceil_mode=True)] if stride > 1 else []
        self.shortcut = nn.Sequential(*pool, ChoiceConvNorm(inputs, width, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, ceil(H / stride), ceil(W / stride))."""
        residual = self.expand(self.attention(self.norm(self.dilated(self.reduce(x)))))
        return torch.relu(residual + self.shortcut(x))
