"""DDRNet-23 and DDRNet-23-slim: two branches that are fused twice, and a pyramid pooling (arXiv 2101.06085)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dnas.networks.dual_resolution import PyramidPooling, ResidualBlock, SegmentationHead, residual_stage
from dnas.networks.layers import conv_bn
from dnas.networks.registry import PaperFacts, PrintedFigure, register_network
from dnas.networks.segmentation import SegmentationNetwork
from dnas.networks.supervision import SupervisedNetwork
from dnas.ops import resize


class DDRNetBackbone(nn.Module):
    """Images (N, 3, H, W) to the maps of both branches at 1/8 and 1/64, of 4 times ``width`` channels each (Fig. 4).

    ``pooled`` is the width of the branches of the pyramid pooling.
    """

    def __init__(self, width: int = 32, pooled: int = 128) -> None:
        super().__init__()
        high = 2 * width
        self.out_channels = 4 * width
        self.stem = nn.Sequential(
            conv_bn(3, width, 3, stride=2), conv_bn(width, width, 3, stride=2), residual_stage(width, width, 2)
        )
        self.stage8 = residual_stage(width, high, 2, stride=2)
        self.low3, self.low4 = (
            residual_stage(high, 4 * width, 2, stride=2),
            residual_stage(4 * width, 8 * width, 2, stride=2),
        )
        self.high3, self.high4 = residual_stage(high, high, 2), residual_stage(high, high, 2)
        self.to_high3, self.to_high4 = (conv_bn(times * width, high, 1, activation=None) for times in (4, 8))
        self.to_low3 = conv_bn(high, 4 * width, 3, stride=2, activation=None)
        self.to_low4 = nn.Sequential(
            conv_bn(high, 4 * width, 3, stride=2), conv_bn(4 * width, 8 * width, 3, stride=2, activation=None)
        )
        self.high5 = ResidualBlock(high, high, bottleneck=True, activate=False)
        self.low5 = ResidualBlock(8 * width, 8 * width, stride=2, bottleneck=True, activate=False)
        self.context = PyramidPooling(16 * width, pooled, self.out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the high-resolution branch and of the context."""
        return self.tapped(images)[0]

    def tapped(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor]]:
        """These maps, and that of the high-resolution branch after the first fusion, before ReLU."""
        shared = torch.relu(self.stage8(torch.relu(self.stem(images))))
        low = torch.relu(self.low3(shared))
        high = self.high3(shared)
        low, fused = (
            torch.relu(low + self.to_low3(torch.relu(high))),
            high + resize(self.to_high3(low), high.shape[-2:]),
        )
        low, high = torch.relu(self.low4(low)), self.high4(torch.relu(fused))
        low, high = (
            torch.relu(low + self.to_low4(torch.relu(high))),
            torch.relu(high + resize(self.to_high4(low), high.shape[-2:])),
        )
        return (self.high5(high), self.context(self.low5(low))), (fused,)


class AddDecoder(nn.Module):
    """The sum of a fine map and a coarse one, resized to it."""

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        """Add ``features``, finest first."""
        return features[0] + resize(features[1], features[0].shape[-2:])


def build_ddrnet(num_classes: int, *, width: int, head: int) -> SupervisedNetwork:
    """DDRNet-23 of a ``width``, with ``head`` channels in the main and in the auxiliary head."""
    backbone = DDRNetBackbone(width)
    extra = partial(SegmentationHead, 2 * width, head, num_classes)
    return SupervisedNetwork(
        backbone, AddDecoder(), SegmentationHead(backbone.out_channels, head, num_classes), [extra]
    )


@register_network(
    "ddrnet_23_slim",
    PaperFacts(
        source="DDRNet, Table IV",
        input_size=(1024, 2048),
        parameters=PrintedFigure("5.7M"),
        multiply_adds=PrintedFigure("36.3G"),
    ),
)
def ddrnet_23_slim(num_classes: int) -> SegmentationNetwork:
    """DDRNet-23-slim; its training adds an auxiliary head with weight 0.4 (deep supervision)."""
    return build_ddrnet(num_classes, width=32, head=64)


@register_network(
    "ddrnet_23",
    PaperFacts(
        source="DDRNet, Table IV; RegSeg v3, Table 8",
        input_size=(1024, 2048),
        parameters=PrintedFigure("20.1M"),
        multiply_adds=PrintedFigure("143.1G"),
    ),
)
def ddrnet_23(num_classes: int) -> SegmentationNetwork:
    """DDRNet-23, with which RegSeg is compared; its training adds an auxiliary head as that of the slim one does."""
    return build_ddrnet(num_classes, width=64, head=128)
