"""The decoders that RegSeg is compared with (version 1, Table 5; version 3, Table 6).

Version 1, section 4.5, gives channels of the projections and of the last convolution; for LRASPP, BiSeNet's and SFNet's
decoder it cites their papers. Their sizes here are those of the other decoders. All but RegSeg's own predict at 1/8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.networks.layers import conv_bn
from dnas.networks.regseg_blocks import DBlock
from dnas.ops import resize

Maps = tuple[Tensor, Tensor, Tensor]
Channels = tuple[int, int, int]


_WIDTH = 128
"""Output channels of the projections and of the last convolution (version 1, section 4.5)."""
_NARROW = 32
"""Channels of the projection of the map at 1/8 if it is concatenated."""


class JoinDecoder(nn.Module):
    """Project the maps at 1/16 and 1/8, add or concatenate them at 1/8, and apply ``last``: to (N, 128, H/8, W/8).

    ``last`` makes the last block from its input and output channels.
    """

    out_channels = _WIDTH

    def __init__(self, channels: Channels, last: Callable[[int, int], nn.Module], concatenate: bool) -> None:
        super().__init__()
        _, at8, at16 = channels
        self.concatenate = concatenate
        self.lateral16 = conv_bn(at16, _WIDTH, 1)
        self.lateral8 = conv_bn(at8, _NARROW if concatenate else _WIDTH, 1)
        self.last = last(_WIDTH + _NARROW if concatenate else _WIDTH, _WIDTH)

    def forward(self, features: Maps) -> Tensor:
        """Fuse ``features``, finest first; the finest is not used."""
        fine = self.lateral8(features[1])
        coarse = resize(self.lateral16(features[2]), fine.shape[-2:])
        joined = torch.cat([coarse, fine], dim=1) if self.concatenate else coarse + fine
        result: Tensor = self.last(joined)
        return result


class LRASPPDecoder(nn.Module):
    """MobileNetV3's LR-ASPP (arXiv 1905.02244, section 6.4): the projected coarse map, scaled by a global gate.

    It adds the class logits of this map and of the map at 1/8, which is one 1x1 convolution over both: the head.
    """

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        _, at8, at16 = channels
        self.out_channels = at8 + _WIDTH
        self.project = conv_bn(at16, _WIDTH, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(at16, _WIDTH, 1, bias=False), nn.Sigmoid())

    def forward(self, features: Maps) -> Tensor:
        """(N, channels at 1/8 + 128, H/8, W/8)."""
        _, fine, coarse = features
        gated = self.project(coarse) * self.gate(coarse)
        return torch.cat([fine, resize(gated, fine.shape[-2:])], dim=1)


class SFNetDecoder(nn.Module):
    """SFNet's flow alignment (arXiv 2002.10120, section 3.2): the coarse map is warped by a predicted flow."""

    out_channels = _WIDTH

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        _, at8, at16 = channels
        self.lateral16 = conv_bn(at16, _WIDTH, 1)
        self.lateral8 = conv_bn(at8, _WIDTH, 1)
        self.flow = nn.Conv2d(2 * _WIDTH, 2, 3, padding=1, bias=False)
        self.last = conv_bn(_WIDTH, _WIDTH, 3)

    def forward(self, features: Maps) -> Tensor:
        """(N, 128, H/8, W/8)."""
        fine, coarse = self.lateral8(features[1]), self.lateral16(features[2])
        flow = self.flow(torch.cat([fine, resize(coarse, fine.shape[-2:])], dim=1))
        result: Tensor = self.last(fine + warp(coarse, flow))
        return result


def warp(coarse: Tensor, flow: Tensor) -> Tensor:
    """Sample ``coarse`` (N, C, h, w) bilinearly at the pixels of ``flow`` (N, 2, H, W), moved by it.

    A flow is in pixels of its own resolution, (x, y); zero flow is bilinear resizing. (N, C, H, W).
    """
    height, width = flow.shape[-2:]
    # Centres of the pixels, with -1 and 1 at the edges of the image.
    y = (torch.arange(height, device=flow.device, dtype=flow.dtype) * 2 + 1) / height - 1
    x = (torch.arange(width, device=flow.device, dtype=flow.dtype) * 2 + 1) / width - 1
    grid = torch.stack([x[None, :] + flow[:, 0] * (2 / width), y[:, None] + flow[:, 1] * (2 / height)], dim=-1)
    return F.grid_sample(coarse, grid, mode="bilinear", padding_mode="border", align_corners=False)


class BiSeNetDecoder(nn.Module):
    """BiSeNet's attention refinement of the coarse map, then its feature fusion (arXiv 1808.00897, section 3.2)."""

    out_channels = _WIDTH

    def __init__(self, channels: Channels) -> None:
        super().__init__()
        _, at8, at16 = channels
        self.lateral16 = conv_bn(at16, _WIDTH, 3)
        self.refine = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(_WIDTH, _WIDTH, 1, bias=False), nn.BatchNorm2d(_WIDTH), nn.Sigmoid()
        )
        self.fuse = FeatureFusion(at8 + _WIDTH, _WIDTH)

    def forward(self, features: Maps) -> Tensor:
        """(N, 128, H/8, W/8)."""
        coarse = self.lateral16(features[2])
        coarse = coarse * self.refine(coarse)
        fused: Tensor = self.fuse(torch.cat([features[1], resize(coarse, features[1].shape[-2:])], dim=1))
        return fused


class FeatureFusion(nn.Module):
    """BiSeNet's feature fusion module: project, and add the map scaled by a gate of its global averages.

    (N, in, H, W) -> (N, out, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, squeeze: int = 1) -> None:
        super().__init__()
        self.project = conv_bn(in_channels, out_channels, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(out_channels, out_channels // squeeze, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels // squeeze, out_channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, joined: Tensor) -> Tensor:
        """Fuse the concatenated maps."""
        features: Tensor = self.project(joined)
        gates: Tensor = self.gate(features)
        return features + features * gates


#: The decoders by the names of Table 5, without RegSeg's own.
ALTERNATIVES: dict[str, Callable[[Channels], nn.Module]] = {
    "sum_3x3": lambda channels: JoinDecoder(channels, _convolution(3), concatenate=False),
    "concat_y": lambda channels: JoinDecoder(channels, DBlock, concatenate=True),
    "concat_3x3": lambda channels: JoinDecoder(channels, _convolution(3), concatenate=True),
    "concat_1x1": lambda channels: JoinDecoder(channels, _convolution(1), concatenate=True),
    "lraspp": LRASPPDecoder,
    "sfnet": SFNetDecoder,
    "bisenet": BiSeNetDecoder,
}


def _convolution(kernel: int) -> Callable[[int, int], nn.Module]:
    return lambda in_channels, out_channels: conv_bn(in_channels, out_channels, kernel)
