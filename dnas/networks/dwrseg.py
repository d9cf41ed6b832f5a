"""DWRSeg: dilation-wise residual modules (arXiv 2212.01173).

The paper lists the modules of each stage but not the downsampling between stages. Here it is a strided convolution,
chosen so that parameters and multiply-adds match Table 1: 3x3 before the SIR modules, 2x2 (64 to 128 channels) before
the two-branch DWR modules, and 3x3 as the first of the three repetitions of the last stage. The parameters of both
networks and the multiply-adds of DWRSeg-B match the table to the last digit. DWRSeg-L has 16.404 G multiply-adds,
0.1 % below the printed 16.42 G: the printed figures differ by 2.80 G, the convolutions of one SIR and five DWR modules
account for 2.786 G, so the authors' counter probably includes a little more than convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnas.networks.dwrseg_blocks import DWRModule, SIRModule, StemBlock
from dnas.networks.layers import conv_bn, scaled
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.ops import resize


class DWRSegBackbone(nn.Module):
    """Images (N, 3, H, W) to feature maps at 1/8, 1/16 and 1/32 with 64, 128 and 128 channels (Table 1).

    ``sir_modules`` and ``dwr_modules`` are the numbers of modules in the stages at 1/8 and 1/16. ``width`` is a factor
    of all channels, which stay multiples of 16.
    """

    def __init__(self, sir_modules: int, dwr_modules: int, width: float = 1.0) -> None:
        super().__init__()
        at8, at16, at32 = (scaled(channels, width, 16) for channels in (64, 128, 128))
        self.channels = (at8, at16, at32)
        self.stem = StemBlock(at8)
        self.stage8 = nn.Sequential(conv_bn(at8, at8, 3, stride=2), *(SIRModule(at8) for _ in range(sir_modules)))
        self.stage16 = nn.Sequential(_downsample(at8, at16), *(DWRModule(at16, (1, 3)) for _ in range(dwr_modules)))
        self.stage32 = nn.Sequential(
            conv_bn(at16, at32, 3, stride=2), DWRModule(at32, (1, 3, 5)), DWRModule(at32, (1, 3, 5))
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps at 1/8, 1/16 and 1/32 of ``images`` (N, 3, H, W)."""
        at8 = self.stage8(self.stem(images))
        at16 = self.stage16(at8)
        return at8, at16, self.stage32(at16)


def _downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 2, 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class DWRSegDecoder(nn.Module):
    """Upsample to the finest map, concatenate, BatchNorm, 3x3 convolution to 128 channels (section 3.4)."""

    def __init__(self, channels: tuple[int, int, int], width: float = 1.0) -> None:
        super().__init__()
        self.out_channels = scaled(128, width, 16)
        self.norm = nn.BatchNorm2d(sum(channels))
        self.fuse = conv_bn(sum(channels), self.out_channels, 3)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Fuse ``features``, finest first, to (N, 128, H / 8, W / 8)."""
        size = features[0].shape[-2:]
        joined = torch.cat([features[0], *(resize(coarse, size) for coarse in features[1:])], dim=1)
        fused: Tensor = self.fuse(self.norm(joined))
        return fused


def build_dwrseg(num_classes: int, sir_modules: int, dwr_modules: int, width: float = 1.0) -> SegmentationNetwork:
    """DWRSeg with any number of modules at 1/8 (SIR) and at 1/16 (two-branch DWR), and channels times ``width``."""
    backbone = DWRSegBackbone(sir_modules, dwr_modules, width)
    decoder = DWRSegDecoder(backbone.channels, width)
    return SegmentationNetwork(backbone, decoder, nn.Conv2d(decoder.out_channels, num_classes, 1))


@register_network(
    "dwrseg_b",
    PaperFacts(
        source="DWRSeg, Table 1",
        input_size=(512, 1024),
        parameters=PrintedFigure("2.54M"),
        multiply_adds=PrintedFigure("13.62G"),
    ),
)
def dwrseg_b(num_classes: int, width: float = 1.0) -> SegmentationNetwork:
    """DWRSeg-Base: 7 SIR and 3 + 3 DWR modules; ``width`` is a factor of all channels."""
    return build_dwrseg(num_classes, sir_modules=7, dwr_modules=3, width=width)


@register_network(
    "dwrseg_l",
    PaperFacts(
        source="DWRSeg, Table 1",
        input_size=(512, 1024),
        parameters=PrintedFigure("3.53M"),
        multiply_adds=PrintedFigure("16.42G"),
        multiply_adds_off=-0.001,
        why="the printed difference to DWRSeg-B, 2.80 G, exceeds the convolutions of the added modules, 2.786 G",
    ),
)
def dwrseg_l(num_classes: int, width: float = 1.0) -> SegmentationNetwork:
    """DWRSeg-Large: 8 SIR and 8 + 3 DWR modules; ``width`` is a factor of all channels."""
    return build_dwrseg(num_classes, sir_modules=8, dwr_modules=8, width=width)
