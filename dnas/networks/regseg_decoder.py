"""RegSeg's decoder (section 3.5, Fig. 8; `decoder26` of the published code)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dnas.networks.layers import conv_bn, scaled
from dnas.ops import resize


class RegSegDecoder(nn.Module):
    """Fuses feature maps at 1/4, 1/8 and 1/16 into one of 64 channels at 1/4.

    The maps at 1/16 and 1/8 are projected to 128 channels, added and convolved to 64 channels; the result is
    concatenated with 8 channels from 1/4 and convolved to 64. Upsampling is bilinear. ``width`` is a factor of all
    channels, which stay multiples of 8.
    """

    def __init__(self, channels: tuple[int, int, int], width: float = 1.0) -> None:
        super().__init__()
        at4, at8, at16 = channels
        self.out_channels, lateral, fine = (scaled(count, width, 8) for count in (64, 128, 8))
        self.lateral16 = conv_bn(at16, lateral, 1)
        self.lateral8 = conv_bn(at8, lateral, 1)
        self.lateral4 = conv_bn(at4, fine, 1)
        self.fuse8 = conv_bn(lateral, self.out_channels, 3)
        self.fuse4 = conv_bn(self.out_channels + fine, self.out_channels, 3)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Fuse ``features``, finest first, to (N, 64, H / 4, W / 4)."""
        at4, at8, at16 = self.lateral4(features[0]), self.lateral8(features[1]), self.lateral16(features[2])
        at8 = self.fuse8(at8 + resize(at16, at8.shape[-2:]))
        fused: Tensor = self.fuse4(torch.cat([resize(at8, at4.shape[-2:]), at4], dim=1))
        return fused
