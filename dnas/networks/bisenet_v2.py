"""BiSeNetV2: a detail branch and a semantic branch with guided aggregation (arXiv 2004.02147).

The convolutions take 24.60 G multiply-adds at 512x1024, the paper prints 21.15 G. The segmentation head alone takes
9.82 G with the 1024 channels that published weights have; about 660 channels would fit the printed figure.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.supervision import ConvHead, SupervisedNetwork
from dnas.ops import resize

_EXPANSION = 6
"""Of the gather-and-expansion layers (epsilon, section 4.2)."""
_HEAD = 1024
"""Channels of the segmentation head (C_t, Fig. 5)."""
_BOOSTER = 128
"""Channels of the booster heads, which the paper leaves open (it varies C_t)."""


def _depthwise(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return conv_bn(in_channels, out_channels, 3, stride=stride, groups=in_channels, activation=None)


class GatherExpand(nn.Module):
    """The gather-and-expansion layer: 3x3 convolution, depth-wise expansion, projection, and a shortcut (Fig. 5).

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        hidden = _EXPANSION * in_channels
        self.gather = conv_bn(in_channels, in_channels, 3)
        expand = [_depthwise(in_channels, hidden, stride)] + ([_depthwise(hidden, hidden)] if stride > 1 else [])
        self.expand = nn.Sequential(*expand, conv_bn(hidden, out_channels, 1, activation=None))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                _depthwise(in_channels, in_channels, stride), conv_bn(in_channels, out_channels, 1, activation=None)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``features``."""
        return torch.relu(self.expand(self.gather(features)) + self.shortcut(features))


class SemanticStem(nn.Module):
    """Convolution and max pooling side by side: images (N, 3, H, W) to (N, channels, H / 4, W / 4) (Fig. 4a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_bn(3, channels, 3, stride=2)
        self.convolve = nn.Sequential(
            conv_bn(channels, channels // 2, 1), conv_bn(channels // 2, channels, 3, stride=2)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = conv_bn(2 * channels, channels, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Features at 1/4."""
        features = self.enter(images)
        fused: Tensor = self.fuse(torch.cat([self.convolve(features), self.pool(features)], dim=1))
        return fused


class ContextEmbedding(nn.Module):
    """Adds a projection of the global averages, then a 3x3 convolution: (N, C, H, W) -> (N, C, H, W) (Fig. 4b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(channels), conv_bn(channels, channels, 1))
        self.convolve = conv_bn(channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Embed the context of ``features``."""
        result: Tensor = self.convolve(features + self.whole(features))
        return result


class BiSeNetV2Backbone(nn.Module):
    """Images (N, 3, H, W) to the maps of the detail branch (1/8) and the semantic branch (1/32), 128 channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            *(conv_bn(3, 64, 3, stride=2), conv_bn(64, 64, 3)),
            *(conv_bn(64, 64, 3, stride=2), conv_bn(64, 64, 3), conv_bn(64, 64, 3)),
            *(conv_bn(64, 128, 3, stride=2), conv_bn(128, 128, 3), conv_bn(128, 128, 3)),
        )
        # A quarter of the detail branch's channels (lambda, section 4.2), in stages of stride 2.
        stages = ((16, 32, 1), (32, 64, 1), (64, 128, 3))
        self.semantic = nn.Sequential(
            SemanticStem(16),
            *(
                nn.Sequential(GatherExpand(before, after, 2), *(GatherExpand(after, after) for _ in range(more)))
                for before, after, more in stages
            ),
            ContextEmbedding(128),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of both branches."""
        return self.detail(images), self.semantic(images)

    def tapped(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """These maps, and those of the semantic branch at 1/4 to 1/32, before the context embedding."""
        features, maps = images, []
        for stage in self.semantic:
            features = stage(features)
            maps.append(features)
        return (self.detail(images), features), tuple(maps[:-1])


class GuidedAggregation(nn.Module):
    """Bilateral guided aggregation: each branch is gated by the other, at both resolutions (Fig. 6).

    Maps (N, C, H, W) and (N, C, H / 4, W / 4) -> (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def separable() -> nn.Sequential:
            return nn.Sequential(_depthwise(channels, channels), nn.Conv2d(channels, channels, 1, bias=False))

        self.detail_keep = separable()
        self.detail_down = nn.Sequential(
            conv_bn(channels, channels, 3, stride=2, activation=None), nn.AvgPool2d(3, 2, 1)
        )
        self.semantic_up = conv_bn(channels, channels, 3, activation=None)
        self.semantic_keep = separable()
        self.fuse = conv_bn(channels, channels, 3, activation=None)

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Aggregate detail and semantic map."""
        detail, semantic = features
        size = detail.shape[-2:]
        fine = self.detail_keep(detail) * torch.sigmoid(resize(self.semantic_up(semantic), size))
        coarse = self.detail_down(detail) * torch.sigmoid(self.semantic_keep(semantic))
        fused: Tensor = self.fuse(fine + resize(coarse, size))
        return fused


@register_network(
    "bisenet_v2",
    PaperFacts(
        source="BiSeNetV2, Table 6",
        input_size=(512, 1024),
        multiply_adds=PrintedFigure("21.15G"),
        multiply_adds_off=0.1633,
        why="the paper does not say how wide the head is that it counts; with 1024 channels it takes 9.82 G",
    ),
)
def bisenet_v2(num_classes: int) -> SegmentationNetwork:
    """BiSeNetV2; its training adds four booster heads on the semantic branch."""
    head = nn.Sequential(conv_bn(128, _HEAD, 3), nn.Dropout(0.1), nn.Conv2d(_HEAD, num_classes, 1))
    boosters = [partial(ConvHead, channels, _BOOSTER, num_classes) for channels in (16, 32, 64, 128)]
    return SupervisedNetwork(BiSeNetV2Backbone(), GuidedAggregation(128), head, boosters)
