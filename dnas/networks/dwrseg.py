"""DWRSeg: dilation-wise residual modules (arXiv 2212.01173).

The paper lists the modules of each stage but not the downsampling between stages. Here it is a strided convolution,
chosen so that parameters and multiply-adds match Table 1: 3x3 before the SIR modules, 2x2 (64 to 128 channels) before
the two-branch DWR modules, and 3x3 as the first of the three repetitions of the last stage, which therefore has two
three-branch DWR modules. The table prints three repetitions; a third module gives 2.80 M and 3.79 M parameters. No
other placement was found that fits: of pooling, 1x1, 2x2, 3x3 and separable convolutions between the stages, first
modules of stride 2 with five kinds of shortcut, and BiSeNetV2's stem, nothing with three modules meets more than two of
the four figures. ``top_modules=3`` follows the text instead.

The parameters of both networks and the multiply-adds of DWRSeg-B match the table to the last digit. DWRSeg-L has
16.404 G multiply-adds, 0.1 % below the printed 16.42 G: the printed figures differ by 2.80 G, the convolutions of one
SIR and five DWR modules account for 2.786 G, so the authors' counter probably includes a little more than convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnas.config import parse_config
from dnas.errors import UserError
from dnas.networks.dwrseg_blocks import PAPER_DESIGN, DWRModule, ModuleDesign, SIRModule, StemBlock
from dnas.networks.layers import conv_bn, scaled
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.ops import resize


class DWRSegBackbone(nn.Module):
    """Images (N, 3, H, W) to feature maps at 1/8, 1/16 and 1/32 with 64, 128 and 128 channels (Table 1).

    ``sir_modules``, ``dwr_modules`` and ``top_modules`` are the numbers of modules in the stages at 1/8, 1/16 and 1/32.
    ``width`` is a factor of all channels, which stay multiples of 16.
    """

    def __init__(
        self,
        sir_modules: int,
        dwr_modules: int,
        width: float = 1.0,
        top_modules: int = 2,
        design: ModuleDesign = PAPER_DESIGN,
    ) -> None:
        super().__init__()
        at8, at16, at32 = (scaled(channels, width, 16) for channels in (64, 128, 128))
        self.channels = (at8, at16, at32)
        self.stem = StemBlock(at8)
        self.stage8 = nn.Sequential(
            conv_bn(at8, at8, 3, stride=2), *(SIRModule(at8, design) for _ in range(sir_modules))
        )
        self.stage16 = nn.Sequential(
            _downsample(at8, at16), *(DWRModule(at16, (1, 3), design) for _ in range(dwr_modules))
        )
        self.stage32 = nn.Sequential(
            conv_bn(at16, at32, 3, stride=2), *(DWRModule(at32, (1, 3, 5), design) for _ in range(top_modules))
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


def build_dwrseg(
    num_classes: int,
    sir_modules: int,
    dwr_modules: int,
    width: float = 1.0,
    top_modules: int = 2,
    design: Mapping[str, Any] | None = None,
) -> SegmentationNetwork:
    """DWRSeg with any number of modules at 1/8 (SIR), 1/16 and 1/32 (DWR), and channels times ``width``.

    ``design``: values of a :class:`ModuleDesign`. Raises :class:`UserError` for invalid values.
    """
    counts = {"sir_modules": sir_modules, "dwr_modules": dwr_modules, "top_modules": top_modules}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UserError(f"{name}: given {count!r}, expected a number of modules")
    chosen = parse_config(ModuleDesign, design or {}, "design")
    backbone = DWRSegBackbone(sir_modules, dwr_modules, width, top_modules, chosen)
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
def dwrseg_b(
    num_classes: int,
    width: float = 1.0,
    sir_modules: int = 7,
    dwr_modules: int = 3,
    top_modules: int = 2,
    design: Mapping[str, Any] | None = None,
) -> SegmentationNetwork:
    """DWRSeg-Base: 7 SIR and 3 + 2 DWR modules; see :func:`build_dwrseg` for the options."""
    return build_dwrseg(num_classes, sir_modules, dwr_modules, width, top_modules, design)


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
def dwrseg_l(
    num_classes: int,
    width: float = 1.0,
    sir_modules: int = 8,
    dwr_modules: int = 8,
    top_modules: int = 2,
    design: Mapping[str, Any] | None = None,
) -> SegmentationNetwork:
    """DWRSeg-Large: 8 SIR and 8 + 2 DWR modules; see :func:`build_dwrseg` for the options."""
    return build_dwrseg(num_classes, sir_modules, dwr_modules, width, top_modules, design)
