"""The bidirectional feature pyramid of EfficientDet (arXiv 1911.09070), as ESeg uses it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def separable_conv(channels: int, activation: type[nn.Module]) -> nn.Sequential:
    """Activation, depth-wise 3x3, point-wise convolution and BatchNorm: (N, C, H, W) -> (N, C, H, W)."""
    return nn.Sequential(
        activation(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


class FusionNode(nn.Module):
    """Weighted mean of feature maps of the same shape, followed by a separable convolution.

    The weights are learned, kept positive by ReLU and normalised to sum 1 (EfficientDet's fast normalised fusion).
    """

    def __init__(self, inputs: int, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.convolve = separable_conv(channels, activation)

    def forward(self, *features: Tensor) -> Tensor:
        """Fuse ``features``, each (N, C, H, W)."""
        weights = F.relu(self.weights)
        factors = weights / (weights.sum() + 1e-4)  # the paper's epsilon
        weighted = [factor * feature for factor, feature in zip(factors.unbind(), features, strict=True)]
        mean = torch.stack(weighted).sum(0)
        fused: Tensor = self.convolve(mean)
        return fused


class BiFPNLayer(nn.Module):
    """A top-down path over all levels, then a bottom-up path; all levels have ``channels`` channels."""

    def __init__(self, levels: int, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        # Top-down: all levels but the coarsest. Bottom-up: all but the finest; the coarsest has no top-down input.
        self.down = nn.ModuleList(FusionNode(2, channels, activation) for _ in range(levels - 1))
        inputs = [3] * (levels - 2) + [2]
        self.up = nn.ModuleList(FusionNode(count, channels, activation) for count in inputs)
        self.halve = nn.MaxPool2d(3, 2, 1)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse ``features``, finest first, each half the size of the previous one; shapes are preserved."""
        refined = [features[-1]]
        for feature, node in zip(reversed(features[:-1]), reversed(self.down), strict=True):
            refined.insert(0, node(feature, F.interpolate(refined[0], size=feature.shape[-2:], mode="nearest")))
        results = [refined[0]]
        for level, node in enumerate(self.up, start=1):
            inputs = [features[level]] if level == len(features) - 1 else [features[level], refined[level]]
            results.append(node(*inputs, self.halve(results[-1])))
        return results


def extend_pyramid(features: Sequence[Tensor], count: int, halve: nn.Module) -> list[Tensor]:
    """``features``, finest first, and ``count`` more maps, each half the size of the one before."""
    pyramid = list(features)
    for _ in range(count):
        pyramid.append(halve(pyramid[-1]))
    return pyramid


class BiFPN(nn.Module):
    """Extends a backbone's feature maps to ``levels`` levels of ``channels`` channels and fuses them ``repeats`` times.

    Levels beyond the backbone's last are 3x3 average poolings of stride 2 of its last map and keep its channels (ESeg,
    section 3.1). A training batch needs at least two images, or images with a side of more than 512 pixels: the
    BatchNorm of the coarsest level (1/512) needs more than one value per channel.
    """

    def __init__(
        self, in_channels: Sequence[int], levels: int, channels: int, repeats: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.pooled = levels - len(in_channels)
        self.halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, channels, 1, bias=False), nn.BatchNorm2d(channels))
            for count in (*in_channels, *[in_channels[-1]] * self.pooled)
        )
        self.layers = nn.ModuleList(BiFPNLayer(levels, channels, activation) for _ in range(repeats))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The fused pyramid of the backbone's ``features``, finest first."""
        pyramid = extend_pyramid(features, self.pooled, self.halve)
        pyramid = [lateral(feature) for lateral, feature in zip(self.laterals, pyramid, strict=True)]
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid
