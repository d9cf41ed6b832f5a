"""DeepLabv3+ (arXiv 1802.02611) on the backbones that ESeg compares it with (ESeg, Table 8).

ESeg does not describe its DeepLabv3+. Here ASPP has regular convolutions and the two convolutions of the decoder are
separable; with the output stride 32 ("w/o atrous") the multiply-adds are 1 to 3 % below the printed ones, with 16
("w/ atrous") 3 % below for EfficientNet-B1 and 25 % above for ResNet-50. No reading of the module fits all four.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.context import ASPP
from dnas.networks.layers import conv_bn
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.timm_backbone import TimmBackbone
from dnas.ops import resize
from dnas.profile import SCALE_AND_SUM_PRICES

_WHY = "ESeg does not describe its DeepLabv3+; see dnas.networks.deeplab"
_LOW = 48
"""Channels of the projection of the finest map."""


def separable_conv_bn(in_channels: int, out_channels: int) -> nn.Sequential:
    """Depth-wise 3x3 and point-wise convolution, each with BatchNorm and ReLU: (N, in, H, W) -> (N, out, H, W)."""
    return nn.Sequential(
        conv_bn(in_channels, in_channels, 3, groups=in_channels), conv_bn(in_channels, out_channels, 1)
    )


class DeepLabDecoder(nn.Module):
    """ASPP on the coarsest map, joined with the finest one: to (N, ``channels``, h, w) of the finest map's size.

    The convolutions after ASPP are separable.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, rates: Sequence[int] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.out_channels = channels
        self.context = ASPP(in_channels[-1], channels, rates)
        self.low = conv_bn(in_channels[0], _LOW, 1)
        self.refine = nn.Sequential(separable_conv_bn(channels + _LOW, channels), separable_conv_bn(channels, channels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse ``features``, finest first."""
        low = self.low(features[0])
        context = resize(self.context(features[-1]), low.shape[-2:])
        fused: Tensor = self.refine(torch.cat([context, low], dim=1))
        return fused


def build_deeplabv3plus(num_classes: int, backbone: str, atrous: bool, pretrained: bool) -> SegmentationNetwork:
    """DeepLabv3+ on timm's ``backbone``; ``atrous``: output stride 16 by dilation instead of 32."""
    features = TimmBackbone(backbone, pretrained, output_stride=16 if atrous else 32)
    decoder = DeepLabDecoder(features.channels)
    return SegmentationNetwork(features, decoder, nn.Conv2d(decoder.out_channels, num_classes, 1))


@register_network(
    "deeplabv3plus_efficientnet_b1",
    PaperFacts(
        source="ESeg, Table 8",
        input_size=(1024, 2048),
        multiply_adds=PrintedFigure("91.8G"),
        multiply_adds_off=-0.0277,
        elementwise=SCALE_AND_SUM_PRICES,
        why=_WHY,
    ),
)
def deeplabv3plus_efficientnet_b1(num_classes: int, atrous: bool = True, pretrained: bool = False) -> nn.Module:
    """DeepLabv3+ on EfficientNet-B1; see :func:`build_deeplabv3plus`."""
    return build_deeplabv3plus(num_classes, "efficientnet_b1", atrous, pretrained)


@register_network(
    "deeplabv3plus_resnet50",
    PaperFacts(
        source="ESeg, Table 8",
        input_size=(1024, 2048),
        multiply_adds=PrintedFigure("324.3G"),
        multiply_adds_off=0.2481,
        elementwise=SCALE_AND_SUM_PRICES,
        why=_WHY,
    ),
)
def deeplabv3plus_resnet50(num_classes: int, atrous: bool = True, pretrained: bool = False) -> nn.Module:
    """DeepLabv3+ on ResNet-50; see :func:`build_deeplabv3plus`."""
    return build_deeplabv3plus(num_classes, "resnet50", atrous, pretrained)
