"""ESeg: EfficientNet and a feature pyramid up to 1/512 instead of high resolution (arXiv 2203.12683).

The paper's multiply-adds match to the last digit if BatchNorm and global average pooling count one operation per value;
the convolutions alone take 33.8, 110.3 and 339.8 G (ESeg-S, M, L at 1024x2048). The paper does not describe the
prediction head; a separable and a 1x1 convolution give the printed parameters to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.networks.bifpn import BiFPN, separable_conv
from dnas.networks.efficientnet import EfficientNetBackbone, FusedEfficientNetBackbone
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.ops import resize
from dnas.profile import SCALE_AND_SUM_PRICES

#: The coarsest level of the pyramid, P9: 1/512 of the image.
_TOP_LEVEL = 9
_CITYSCAPES = (1024, 2048)


class ESegDecoder(nn.Module):
    """BiFPN, then the softmax-weighted sum of all levels, resized to the finest (section 3.1)."""

    def __init__(
        self, in_channels: Sequence[int], levels: int, channels: int, repeats: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.pyramid = BiFPN(in_channels, levels, channels, repeats, activation)
        self.level_weights = nn.Parameter(torch.ones(levels))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse ``features``, finest first, to one map of the finest size."""
        levels = self.pyramid(features)
        weights = self.level_weights.softmax(0).unbind()
        size = levels[0].shape[-2:]
        result: Tensor = weights[0] * levels[0]
        for weight, level in zip(weights[1:], levels[1:], strict=True):
            result = result + weight * resize(level, size)
        return result


def _assemble(
    backbone: EfficientNetBackbone | FusedEfficientNetBackbone,
    num_classes: int,
    finest_level: int,
    channels: int,
    repeats: int,
    activation: type[nn.Module],
) -> SegmentationNetwork:
    levels = _TOP_LEVEL - finest_level + 1
    decoder = ESegDecoder(backbone.channels, levels, channels, repeats, activation)
    head = nn.Sequential(separable_conv(channels, activation), activation(), nn.Conv2d(channels, num_classes, 1))
    return SegmentationNetwork(backbone, decoder, head)


def build_eseg(
    num_classes: int, efficientnet: str, channels: int, repeats: int, pretrained: bool = False
) -> SegmentationNetwork:
    """ESeg on timm's EfficientNet ``efficientnet``, levels P2 to P9, prediction at 1/4.

    ``pretrained`` loads timm's ImageNet weights.
    """
    backbone = EfficientNetBackbone(efficientnet, pretrained)
    return _assemble(backbone, num_classes, 2, channels, repeats, nn.SiLU)


def build_eseg_lite(num_classes: int, width: float, depth: float, channels: int, repeats: int) -> SegmentationNetwork:
    """ESeg-Lite: Fused-MBConv, ReLU, no squeeze and excitation, levels P3 to P9, prediction at 1/8 (section 3.3)."""
    backbone = FusedEfficientNetBackbone(width, depth)
    return _assemble(backbone, num_classes, 3, channels, repeats, nn.ReLU)


@register_network(
    "eseg_lite_s",
    PaperFacts(source="ESeg, section 3.2", input_size=_CITYSCAPES, multiply_adds=PrintedFigure("17G")),
)
def eseg_lite_s(num_classes: int) -> SegmentationNetwork:
    """ESeg-Lite-S (Table 3)."""
    return build_eseg_lite(num_classes, 0.4, 0.6, channels=64, repeats=1)


@register_network("eseg_lite_m", PaperFacts(source="ESeg, Table 3", input_size=_CITYSCAPES))
def eseg_lite_m(num_classes: int) -> SegmentationNetwork:
    """ESeg-Lite-M (Table 3); the paper gives neither parameters nor multiply-adds."""
    return build_eseg_lite(num_classes, 0.6, 1.0, channels=80, repeats=2)


@register_network("eseg_lite_l", PaperFacts(source="ESeg, Table 3", input_size=_CITYSCAPES))
def eseg_lite_l(num_classes: int) -> SegmentationNetwork:
    """ESeg-Lite-L (Table 3); the paper gives neither parameters nor multiply-adds."""
    return build_eseg_lite(num_classes, 1.0, 1.0, channels=96, repeats=3)


@register_network(
    "eseg_s",
    PaperFacts(
        source="ESeg, Table 4",
        input_size=_CITYSCAPES,
        parameters=PrintedFigure("6.9M"),
        multiply_adds=PrintedFigure("34.5G"),
        elementwise=SCALE_AND_SUM_PRICES,
    ),
)
def eseg_s(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """ESeg-S: EfficientNet-B1 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b1", channels=96, repeats=4, pretrained=pretrained)


@register_network(
    "eseg_m",
    PaperFacts(
        source="ESeg, Table 4",
        input_size=_CITYSCAPES,
        parameters=PrintedFigure("20.0M"),
        multiply_adds=PrintedFigure("112G"),
        elementwise=SCALE_AND_SUM_PRICES,
    ),
)
def eseg_m(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """ESeg-M: EfficientNet-B4 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b4", channels=192, repeats=5, pretrained=pretrained)


@register_network(
    "eseg_l",
    PaperFacts(
        source="ESeg, Table 4",
        input_size=_CITYSCAPES,
        parameters=PrintedFigure("70.5M"),
        multiply_adds=PrintedFigure("343G"),
        elementwise=SCALE_AND_SUM_PRICES,
    ),
)
def eseg_l(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """ESeg-L: EfficientNet-B7 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b7", channels=288, repeats=6, pretrained=pretrained)
