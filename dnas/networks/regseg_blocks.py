"""The dilated block (D block) of RegSeg (Fig. 4); with all rates equal to 1 it is the Y block of RegNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.layers import SqueezeExcite, conv_bn


class DilatedConv(nn.Module):
    """A 3x3 group convolution whose groups are divided among branches with different dilation rates.

    (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)). ``rates`` holds one dilation rate per branch. Each
    branch convolves an equal chunk of the channels, in order, and is a plain ``nn.Conv2d``, so that any tool for
    convolutions works on it. If all rates are equal, one convolution replaces the branches, which is faster (section
    3.2 of the paper), unless ``split_equal`` is set. Raises ValueError if the groups cannot be divided evenly.
    """

    def __init__(
        self, channels: int, rates: Sequence[int], *, stride: int = 1, group_width: int = 16, split_equal: bool = False
    ) -> None:
        super().__init__()
        if channels % group_width:
            raise ValueError(f"{channels} channels cannot be divided into groups of width {group_width}")
        if not rates or any(rate < 1 for rate in rates):
            raise ValueError(f"dilation rates {tuple(rates)}: expected one or more rates of at least 1")
        if len(set(rates)) == 1 and not split_equal:
            rates = rates[:1]
        if (channels // group_width) % len(rates):
            groups = channels // group_width
            raise ValueError(f"{channels} channels have {groups} groups, not divisible among {len(rates)} branches")
        width = channels // len(rates)
        self.branches = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, rate, dilation=rate, groups=width // group_width, bias=False)
            for rate in rates
        )

    @torch.no_grad()
    def merge_equal(self) -> None:
        """If all branches have the same rate, merge them into one convolution, in place; the output is unchanged."""
        convs = [branch for branch in self.branches if type(branch) is nn.Conv2d]
        first = convs[0] if len(convs) == len(self.branches) > 1 else None
        if first is None or len({conv.dilation for conv in convs}) > 1:
            return
        width, rate = sum(conv.in_channels for conv in convs), first.dilation[0]
        groups = sum(conv.groups for conv in convs)
        merged = nn.Conv2d(width, width, 3, first.stride[0], rate, rate, groups, bias=False, device="meta")
        merged.weight = nn.Parameter(torch.cat([conv.weight for conv in convs]))
        self.branches = nn.ModuleList([merged.train(self.training)])

    def forward(self, features: Tensor) -> Tensor:
        """Convolve ``features`` (N, C, H, W); each branch gets its chunk of the channels."""
        if len(self.branches) == 1:
            result: Tensor = self.branches[0](features)
            return result
        chunks = features.chunk(len(self.branches), dim=1)
        return torch.cat([branch(chunk) for branch, chunk in zip(self.branches, chunks, strict=True)], dim=1)


class DBlock(nn.Module):
    """1x1 convolution, dilated 3x3 group convolution, squeeze and excitation, 1x1 convolution, and a shortcut.

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)). The squeezed width is a quarter of the *block's*
    input channels, as in RegNetY. The shortcut of a strided block is 2x2 average pooling and a 1x1 convolution (the
    ResNet-D variant); with stride 1 and equal channels it is the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int] = (1, 1),
        *,
        stride: int = 1,
        group_width: int = 16,
        split_equal: bool = False,
    ) -> None:
        super().__init__()
        self.reduce = conv_bn(in_channels, out_channels, 1)
        self.dilated = DilatedConv(out_channels, rates, stride=stride, group_width=group_width, split_equal=split_equal)
        self.dilated_norm = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU())
        self.attention = SqueezeExcite(out_channels, in_channels // 4)
        self.expand = conv_bn(out_channels, out_channels, 1, activation=None)
        self.shortcut = self._shortcut(in_channels, out_channels, stride)
        self.activation = nn.ReLU()

    @staticmethod
    def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        project = conv_bn(in_channels, out_channels, 1, activation=None)
        # ceil_mode: a strided 3x3 convolution with padding 1 rounds odd sizes up, and the two are added.
        return project if stride == 1 else nn.Sequential(nn.AvgPool2d(stride, stride, ceil_mode=True), project)

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``features`` (N, in, H, W)."""
        residual = self.dilated_norm(self.dilated(self.reduce(features)))
        residual = self.expand(self.attention(residual))
        result: Tensor = self.activation(residual + self.shortcut(features))
        return result
