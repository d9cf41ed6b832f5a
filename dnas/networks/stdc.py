"""STDC1-Seg and STDC2-Seg: short-term dense concatenation in BiSeNet's decoder (arXiv 2104.13188).

The paper counts the classification networks alone (Table 2): 8.44 M and 12.47 M parameters, 813 M and 1446 M
multiply-adds at 224x224. With :class:`STDCClassifier` on the backbones here the parameters are met to the digit; the
convolutions and matrix products take 806 M and 1437 M, 0.9 and 0.6 % less.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.networks.registry import PaperFacts, register_network
from dnas.networks.regseg_alternatives import FeatureFusion
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.supervision import ConvHead, SupervisedNetwork
from dnas.ops import resize

_STAGES = (256, 512, 1024)
_CONTEXT = 128
"""Channels of the context path (BiSeNet)."""


class STDCModule(nn.Module):
    """Four convolutions of falling width whose results are concatenated (section 3.1, Fig. 3).

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)). With stride 2 the second step is strided, by a
    depth-wise convolution before it, and the first result is averaged.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.first = conv_bn(in_channels, half, 1)
        self.halve: nn.Module = nn.Identity()
        self.average: nn.Module = nn.Identity()
        if stride > 1:
            self.halve = conv_bn(half, half, 3, stride=stride, groups=half, activation=None)
            self.average = nn.AvgPool2d(3, stride, 1)
        self.others = nn.ModuleList(
            [conv_bn(half, quarter, 3), conv_bn(quarter, eighth, 3), conv_bn(eighth, eighth, 3)]
        )

    def forward(self, features: Tensor) -> Tensor:
        """Transform ``features``."""
        first = self.first(features)
        results, current = [self.average(first)], self.halve(first)
        for convolution in self.others:
            current = convolution(current)
            results.append(current)
        return torch.cat(results, dim=1)


class STDCBackbone(nn.Module):
    """Images (N, 3, H, W) to feature maps at 1/8, 1/16 and 1/32 with 256, 512 and 1024 channels (Table 2).

    ``modules`` is the number of modules in each of the three stages.
    """

    def __init__(self, modules: Sequence[int]) -> None:
        super().__init__()
        self.channels = _STAGES
        self.stem = nn.Sequential(conv_bn(3, 32, 3, stride=2), conv_bn(32, 64, 3, stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(STDCModule(before, after, 2), *(STDCModule(after, after) for _ in range(count - 1)))
            for before, after, count in zip((64, *_STAGES), _STAGES, modules, strict=False)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The feature maps, finest first."""
        return self.tapped(images)[0]

    def tapped(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor]]:
        """These maps, and the first of them, whose details are trained."""
        features, maps = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return tuple(maps), (maps[0],)


class STDCClassifier(nn.Module):
    """The ImageNet network: a 1x1 convolution, the global average and two linear layers (Table 2)."""

    def __init__(self, backbone: STDCBackbone, num_classes: int = 1000) -> None:
        super().__init__()
        channels = backbone.channels[-1]
        self.backbone = backbone
        self.widen = conv_bn(channels, channels, 1)
        self.classify = nn.Sequential(
            nn.Linear(channels, channels, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Linear(channels, num_classes, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> class logits (N, classes)."""
        logits: Tensor = self.classify(self.widen(self.backbone(images)[-1]).mean((2, 3)))
        return logits


class AttentionRefinement(nn.Module):
    """BiSeNet's attention refinement: a 3x3 convolution, scaled by a gate of its global averages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolve = conv_bn(in_channels, out_channels, 3)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv_bn(out_channels, out_channels, 1, activation=None), nn.Sigmoid()
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        refined: Tensor = self.convolve(features)
        gates: Tensor = self.gate(refined)
        return refined * gates


class STDCDecoder(nn.Module):
    """Context from 1/32 and 1/16, fused with the map at 1/8 to (N, 256, H/8, W/8) (Fig. 4a, after BiSeNet)."""

    out_channels = 256

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        at8, at16, at32 = channels
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(at32, _CONTEXT, 1))
        self.refine32, self.refine16 = AttentionRefinement(at32, _CONTEXT), AttentionRefinement(at16, _CONTEXT)
        self.smooth32, self.smooth16 = conv_bn(_CONTEXT, _CONTEXT, 3), conv_bn(_CONTEXT, _CONTEXT, 3)
        self.fuse = FeatureFusion(at8 + _CONTEXT, self.out_channels, squeeze=4)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse ``features``, finest first."""
        return self.tapped(features)[0]

    def tapped(self, features: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The fused map, and those of the context at 1/8 and 1/16."""
        at8, at16, at32 = features
        context = self.refine32(at32) + self.whole(at32)
        coarse = self.smooth32(resize(context, at16.shape[-2:]))
        context = self.smooth16(resize(self.refine16(at16) + coarse, at8.shape[-2:]))
        fused: Tensor = self.fuse(torch.cat([at8, context], dim=1))
        return fused, (context, coarse)


def build_stdc(num_classes: int, modules: Sequence[int]) -> SegmentationNetwork:
    """STDC-Seg with ``modules`` in the stages at 1/8, 1/16 and 1/32.

    Its training adds a head for the details at 1/8 (detail guidance), and heads on the context at 1/8 and 1/16.
    """
    backbone = STDCBackbone(modules)
    decoder = STDCDecoder(backbone.channels)
    head = nn.Sequential(conv_bn(decoder.out_channels, 256, 3), nn.Conv2d(256, num_classes, 1))
    makers = [partial(ConvHead, backbone.channels[0], 64, 1), *[partial(ConvHead, _CONTEXT, 64, num_classes)] * 2]
    return SupervisedNetwork(backbone, decoder, head, makers)


@register_network("stdc1", PaperFacts(source="STDC, Table 2", input_size=(512, 1024)))
def stdc1(num_classes: int) -> SegmentationNetwork:
    """STDC1-Seg50; the paper counts the classification network alone."""
    return build_stdc(num_classes, (2, 2, 2))


@register_network("stdc2", PaperFacts(source="STDC, Table 2", input_size=(768, 1536)))
def stdc2(num_classes: int) -> SegmentationNetwork:
    """STDC2-Seg75; the paper counts the classification network alone."""
    return build_stdc(num_classes, (4, 5, 3))
