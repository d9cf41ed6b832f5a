"""A small RegSeg: a few D blocks at 1/8, for small images and machines. It is not from a paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks.layers import conv_bn
from dnas.networks.regseg_blocks import DBlock
from dnas.networks.segmentation import SegmentationNetwork
from dnas.ops import resize

_STEM, _AT4 = 16, 32
_LATERAL = 8
_GROUP_WIDTH = 16


class SmallBackbone(nn.Module):
    """Images (N, 3, H, W) to feature maps at 1/4 and 1/8 with 32 and ``width`` channels.

    One D block of stride 1 at 1/8 for each entry of ``rates``, which holds one dilation rate per branch; the earlier
    layers have rate 1. ``split_equal`` keeps one convolution per branch even if the rates are equal.
    """

    def __init__(self, rates: Sequence[Sequence[int]], width: int, *, split_equal: bool = False) -> None:
        super().__init__()
        self.channels = (_AT4, width)
        self.stem = conv_bn(3, _STEM, 3, stride=2)
        self.stage4 = DBlock(_STEM, _AT4, stride=2)
        self.stage8 = DBlock(_AT4, width, stride=2)
        self.blocks = nn.Sequential(*(DBlock(width, width, block, split_equal=split_equal) for block in rates))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Feature maps at 1/4 and 1/8 of ``images`` (N, 3, H, W)."""
        at4 = self.stage4(self.stem(images))
        return at4, self.blocks(self.stage8(at4))


class SmallDecoder(nn.Module):
    """Fuses feature maps at 1/4 and 1/8 into one of 32 channels at 1/4, like the last step of RegSeg's decoder."""

    out_channels = 32

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        at4, at8 = channels
        self.lateral8 = conv_bn(at8, self.out_channels, 1)
        self.lateral4 = conv_bn(at4, _LATERAL, 1)
        self.fuse4 = conv_bn(self.out_channels + _LATERAL, self.out_channels, 3)

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Fuse ``features``, finest first, to (N, 32, H / 4, W / 4)."""
        at4, at8 = self.lateral4(features[0]), self.lateral8(features[1])
        fused: Tensor = self.fuse4(torch.cat([resize(at8, at4.shape[-2:]), at4], dim=1))
        return fused


def regseg_small(
    num_classes: int, rates: Sequence[Sequence[int]] = ((1, 1),) * 6, width: int = 64, split_equal: bool = False
) -> SegmentationNetwork:
    """The small RegSeg; see :class:`SmallBackbone`. The searched layers are ``backbone.blocks.*``.

    Raises :class:`UserError` for invalid rates or an invalid width.
    """
    branches = max((len(block) for block in rates), default=0)
    if not rates or width < 1 or width % (_GROUP_WIDTH * branches):
        raise UserError(
            f"regseg_small: {len(rates)} blocks of width {width}: expected at least one block, and a width that is a "
            f"multiple of {_GROUP_WIDTH} for each branch"
        )
    for number, block in enumerate(rates, start=1):
        wrong = [rate for rate in block if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1]
        if wrong or len(block) not in (1, 2, 4):
            raise UserError(
                f"regseg_small: dilation rates of block {number}: given {list(block)}, "
                "expected 1, 2 or 4 integers of at least 1"
            )
    backbone = SmallBackbone(rates, width, split_equal=split_equal)
    decoder = SmallDecoder(backbone.channels)
    return SegmentationNetwork(backbone, decoder, nn.Conv2d(decoder.out_channels, num_classes, 1))
