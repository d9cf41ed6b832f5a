"""ESeg: EfficientNet and a feature pyramid up to 1/512 instead of high resolution (arXiv 2203.12683).

The paper's multiply-adds match to the last digit if BatchNorm and global average pooling count one operation per value;
the convolutions alone take 33.8, 110.3 and 339.8 G (ESeg-S, M, L at 1024x2048). The paper does not describe the
prediction head; a separable and a 1x1 convolution give the printed parameters to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks.bifpn import BiFPN, separable_conv
from dnas.networks.efficientnet import FusedEfficientNetBackbone
from dnas.networks.fpn import FPN
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.timm_backbone import TimmBackbone
from dnas.ops import resize
from dnas.profile import SCALE_AND_SUM_PRICES

#: The coarsest level of the pyramid, P9: 1/512 of the image.
_TOP_LEVEL = 9
_CITYSCAPES = (1024, 2048)


class ESegDecoder(nn.Module):
    """BiFPN, then the softmax-weighted sum of all levels, resized to the finest (section 3.1).

    Without ``repeats`` the pyramid is an FPN.
    """

    def __init__(
        self, in_channels: Sequence[int], levels: int, channels: int, repeats: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.pyramid = (
            BiFPN(in_channels, levels, channels, repeats, activation) if repeats else FPN(in_channels, levels, channels)
        )
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
    backbone: TimmBackbone | FusedEfficientNetBackbone,
    num_classes: int,
    finest_level: int,
    channels: int,
    repeats: int,
    activation: type[nn.Module],
    top_level: int = _TOP_LEVEL,
) -> SegmentationNetwork:
    levels = top_level - finest_level + 1
    decoder = ESegDecoder(backbone.channels, levels, channels, repeats, activation)
    head = nn.Sequential(separable_conv(channels, activation), activation(), nn.Conv2d(channels, num_classes, 1))
    return SegmentationNetwork(backbone, decoder, head)


def build_eseg(
    num_classes: int,
    backbone: str,
    channels: int,
    repeats: int,
    pretrained: bool = False,
    top_level: int = _TOP_LEVEL,
    pyramid: str = "bifpn",
) -> SegmentationNetwork:
    """ESeg on timm's ``backbone``, levels P2 to P(``top_level``), prediction at 1/4.

    ``top_level`` is from 5 to 9 (Table 1), ``pyramid`` "bifpn" with ``repeats`` layers or "fpn" (Table 2).
    ``pretrained`` loads timm's ImageNet weights. Raises :class:`UserError` for other values.
    """
    if isinstance(top_level, bool) or not isinstance(top_level, int) or not 5 <= top_level <= _TOP_LEVEL:
        raise UserError(f"top_level: given {top_level!r}, expected a level from 5 to {_TOP_LEVEL}")
    if pyramid not in ("bifpn", "fpn"):
        raise UserError(f"pyramid: given {pyramid!r}, expected bifpn or fpn")
    layers = repeats if pyramid == "bifpn" else 0
    return _assemble(TimmBackbone(backbone, pretrained), num_classes, 2, channels, layers, nn.SiLU, top_level)


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
def eseg_s(
    num_classes: int, pretrained: bool = False, top_level: int = 9, pyramid: str = "bifpn", channels: int = 96
) -> SegmentationNetwork:
    """ESeg-S: EfficientNet-B1 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b1", channels, 4, pretrained, top_level, pyramid)


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
def eseg_m(
    num_classes: int, pretrained: bool = False, top_level: int = 9, pyramid: str = "bifpn", channels: int = 192
) -> SegmentationNetwork:
    """ESeg-M: EfficientNet-B4 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b4", channels, 5, pretrained, top_level, pyramid)


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
def eseg_l(
    num_classes: int, pretrained: bool = False, top_level: int = 9, pyramid: str = "bifpn", channels: int = 288
) -> SegmentationNetwork:
    """ESeg-L: EfficientNet-B7 (Table 3)."""
    return build_eseg(num_classes, "efficientnet_b7", channels, 6, pretrained, top_level, pyramid)


@register_network(
    "eseg_resnet50",
    PaperFacts(
        source="ESeg, Table 8",
        input_size=_CITYSCAPES,
        multiply_adds=PrintedFigure("188.0G"),
        multiply_adds_off=-0.0003,
        elementwise=SCALE_AND_SUM_PRICES,
        why="187.94 G: the paper's ResNet-50 may differ in a detail from timm's",
    ),
)
def eseg_resnet50(
    num_classes: int, pretrained: bool = False, top_level: int = 9, pyramid: str = "bifpn", channels: int = 96
) -> SegmentationNetwork:
    """ESeg-S's decoder on ResNet-50."""
    return build_eseg(num_classes, "resnet50", channels, 4, pretrained, top_level, pyramid)
