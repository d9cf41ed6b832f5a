"""RegSeg's backbone (Table 1 of version 3, Table 2 of version 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dnas.errors import UserError
from dnas.networks.layers import conv_bn, scaled
from dnas.networks.regseg_blocks import DBlock

#: Number of blocks with configurable dilation rates: the last blocks of the backbone (stride 1, at 1/16).
DILATED_BLOCKS = 13


class RegSegBackbone(nn.Module):
    """Images (N, 3, H, W) to feature maps at 1/4, 1/8 and 1/16 with 48, 128 and 320 channels.

    ``rates`` holds the dilation rates of the last 13 blocks, one per branch (1, 2 or 4 branches); the earlier blocks
    have rate 1. ``split_equal`` keeps one convolution per branch in those 13 blocks even if their rates are equal.
    ``width`` is a factor of all channels, which stay multiples of 64 in the dilated blocks and of 16 elsewhere.
    Raises :class:`UserError` for invalid rates.
    """

    def __init__(self, rates: Sequence[Sequence[int]], *, split_equal: bool = False, width: float = 1.0) -> None:
        super().__init__()
        check_rates(rates)
        stem, at4, at8 = (scaled(channels, width, 16) for channels in (32, 48, 128))
        at16, end = (scaled(channels, width, 64) for channels in (256, 320))
        self.channels = (at4, at8, end)
        self.stem = conv_bn(3, stem, 3, stride=2)
        self.stage4 = DBlock(stem, at4, stride=2)
        self.stage8 = nn.Sequential(DBlock(at4, at8, stride=2), DBlock(at8, at8), DBlock(at8, at8))
        *inner, last = rates
        self.stage16 = nn.Sequential(
            DBlock(at8, at16, stride=2),
            *(DBlock(at16, at16, block, split_equal=split_equal) for block in inner),
            DBlock(at16, end, last, split_equal=split_equal),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps at 1/4, 1/8 and 1/16 of ``images`` (N, 3, H, W)."""
        at4 = self.stage4(self.stem(images))
        at8 = self.stage8(at4)
        return at4, at8, self.stage16(at8)


def check_rates(rates: Sequence[Sequence[int]]) -> None:
    """Raise :class:`UserError` unless ``rates`` are 13 blocks of 1, 2 or 4 integer dilation rates of at least 1."""
    if len(rates) != DILATED_BLOCKS:
        raise UserError(f"dilation rates: given {len(rates)} blocks, RegSeg has {DILATED_BLOCKS} dilated blocks")
    for number, block in enumerate(rates, start=1):
        if len(block) not in (1, 2, 4):
            raise UserError(f"dilation rates of block {number}: given {len(block)} branches, expected 1, 2 or 4")
        wrong = [rate for rate in block if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1]
        if wrong:
            raise UserError(f"dilation rates of block {number}: given {wrong[0]!r}, expected an integer >= 1")
