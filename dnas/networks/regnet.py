"""RegNetY-600MF with RegSeg's decoder, with and without a context module (RegSeg v3, Table 3; v1, Table 4, row 10).

The backbone is timm's, dilated to an output stride of 16. Channels of the context modules (256), their rates and bins
are those of the papers that RegSeg cites; RegSeg gives neither parameters nor multiply-adds.
"""

from __future__ import annotations

from torch import Tensor, nn

from dnas.networks.context import ASPP, PPM
from dnas.networks.registry import PaperFacts, register_network
from dnas.networks.regseg_decoder import RegSegDecoder
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.timm_backbone import TimmBackbone

_CONTEXT = 256
_CITYSCAPES = (1024, 2048)
_SOURCE = "RegSeg v3, Table 3 and Fig. 2"


class RegNetBackbone(TimmBackbone):
    """RegNetY-600MF: images (N, 3, H, W) to feature maps at 1/4, 1/8 and 1/16, the last one of the last stage."""

    def __init__(self, pretrained: bool = False) -> None:
        super().__init__("regnety_006", pretrained, output_stride=16)
        at4, at8, _, last = self.channels
        self.channels = (at4, at8, last)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of ``images``."""
        at4, at8, _, last = super().forward(images)
        return at4, at8, last


def _assemble(backbone: RegNetBackbone, num_classes: int) -> SegmentationNetwork:
    at4, at8, last = backbone.channels
    decoder = RegSegDecoder((at4, at8, last))
    return SegmentationNetwork(backbone, decoder, nn.Conv2d(decoder.out_channels, num_classes, 1))


@register_network("regnety_600mf", PaperFacts(source=_SOURCE, input_size=_CITYSCAPES, field_of_view=479))
def regnety_600mf(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """RegNetY-600MF without a context module; ``pretrained`` loads timm's ImageNet weights."""
    return _assemble(RegNetBackbone(pretrained), num_classes)


@register_network("regnety_600mf_aspp", PaperFacts(source=_SOURCE, input_size=_CITYSCAPES, field_of_view=1055))
def regnety_600mf_aspp(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """RegNetY-600MF with ASPP of the rates 1, 6, 12 and 18."""
    backbone = RegNetBackbone(pretrained)
    backbone.add_context(ASPP(backbone.channels[-1], _CONTEXT), _CONTEXT)
    return _assemble(backbone, num_classes)


@register_network("regnety_600mf_ppm", PaperFacts(source=_SOURCE, input_size=_CITYSCAPES))
def regnety_600mf_ppm(num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """RegNetY-600MF with PPM of the grids 1, 2, 3 and 6."""
    backbone = RegNetBackbone(pretrained)
    backbone.add_context(PPM(backbone.channels[-1], _CONTEXT), _CONTEXT)
    return _assemble(backbone, num_classes)
