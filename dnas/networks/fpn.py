"""The feature pyramid network (arXiv 1612.03144): one top-down path."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dnas.networks.bifpn import extend_pyramid
from dnas.networks.layers import conv_bn


class FPN(nn.Module):
    """Extends a backbone's feature maps to ``levels`` levels of ``channels`` channels and adds them from top to bottom.

    Levels beyond the backbone's last are pooled as in :class:`dnas.networks.bifpn.BiFPN`. A 3x3 convolution with
    BatchNorm follows the addition at each level.
    """

    def __init__(self, in_channels: Sequence[int], levels: int, channels: int) -> None:
        super().__init__()
        self.pooled = levels - len(in_channels)
        self.halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        widths = (*in_channels, *[in_channels[-1]] * self.pooled)
        self.laterals = nn.ModuleList(conv_bn(count, channels, 1, activation=None) for count in widths)
        self.smooth = nn.ModuleList(conv_bn(channels, channels, 3, activation=None) for _ in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The fused pyramid of the backbone's ``features``, finest first."""
        pyramid = extend_pyramid(features, self.pooled, self.halve)
        pyramid = [lateral(feature) for lateral, feature in zip(self.laterals, pyramid, strict=True)]
        summed = [pyramid[-1]]
        for feature in reversed(pyramid[:-1]):
            summed.insert(0, feature + F.interpolate(summed[0], size=feature.shape[-2:], mode="nearest"))
        return [smooth(feature) for smooth, feature in zip(self.smooth, summed, strict=True)]
