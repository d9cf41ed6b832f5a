"""PIDNet-S: branches for detail, context and boundaries (arXiv 2206.02066)."""

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


class PixelAttention(nn.Module):
    """The Pag module: each pixel takes the coarse map as far as both maps agree there (Fig. 4)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.embed_fine, self.embed_coarse = (conv_bn(channels, hidden, 1, activation=None) for _ in range(2))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """``fine`` (N, C, H, W) and ``coarse`` (N, C, h, w) -> (N, C, H, W)."""
        size = fine.shape[-2:]
        agreement = self.embed_fine(fine) * resize(self.embed_coarse(coarse), size)
        share = torch.sigmoid(agreement.sum(dim=1, keepdim=True))
        return (1 - share) * fine + share * resize(coarse, size)


class BoundaryFusion(nn.Module):
    """The light Bag module: boundaries decide between detail and context (Fig. 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_detail, self.of_context = (conv_bn(channels, channels, 1, activation=None) for _ in range(2))

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """``features``: detail (N, C, H, W), context (N, C, h, w) and boundaries (N, C, H, W) -> (N, C, H, W)."""
        detail, coarse, boundaries = features
        context, edge = resize(coarse, detail.shape[-2:]), torch.sigmoid(boundaries)
        fused: Tensor = self.of_detail((1 - edge) * context + detail) + self.of_context(context + edge * detail)
        return fused


class PIDNetBackbone(nn.Module):
    """Images (N, 3, H, W) to maps of detail (1/8), context (1/64) and boundaries (1/8), of 4 times ``width`` channels.

    Widths and depths are those of PIDNet-S (Table 1); ``pooled`` is the width of the branches of the pyramid pooling.
    """

    def __init__(self, width: int = 32, pooled: int = 96) -> None:
        super().__init__()
        fine = 2 * width
        self.out_channels = 4 * width
        self.stem = nn.Sequential(
            conv_bn(3, width, 3, stride=2), conv_bn(width, width, 3, stride=2), residual_stage(width, width, 2)
        )
        self.stage8 = residual_stage(width, fine, 2, stride=2)
        self.context3 = residual_stage(fine, 4 * width, 3, stride=2)
        self.context4 = residual_stage(4 * width, 8 * width, 3, stride=2)
        self.context5 = nn.Sequential(
            ResidualBlock(8 * width, 8 * width, stride=2, bottleneck=True),
            ResidualBlock(16 * width, 8 * width, bottleneck=True, activate=False),
        )
        self.pool = PyramidPooling(16 * width, pooled, self.out_channels, parallel=True)
        self.detail3, self.detail4 = residual_stage(fine, fine, 2), residual_stage(fine, fine, 2)
        self.detail5 = ResidualBlock(fine, fine, bottleneck=True, activate=False)
        self.to_detail3, self.to_detail4 = (conv_bn(times * width, fine, 1, activation=None) for times in (4, 8))
        self.attend3, self.attend4 = PixelAttention(fine, width), PixelAttention(fine, width)
        self.boundary3 = ResidualBlock(fine, width, activate=False)
        self.boundary4 = ResidualBlock(width, width, bottleneck=True, activate=False)
        self.boundary5 = ResidualBlock(fine, fine, bottleneck=True, activate=False)
        self.to_boundary3 = conv_bn(4 * width, width, 3, activation=None)
        self.to_boundary4 = conv_bn(8 * width, fine, 3, activation=None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps of the three branches."""
        return self.tapped(images)[0]

    def tapped(self, images: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """These maps, that of detail after the first attention, and that of boundaries before its last block."""
        shared = torch.relu(self.stage8(torch.relu(self.stem(images))))
        size = shared.shape[-2:]
        context = torch.relu(self.context3(shared))
        first = self.attend3(self.detail3(shared), self.to_detail3(context))
        boundaries = self.boundary3(shared) + resize(self.to_boundary3(context), size)
        context = torch.relu(self.context4(context))
        detail = self.attend4(self.detail4(torch.relu(first)), self.to_detail4(context))
        boundaries = self.boundary4(torch.relu(boundaries)) + resize(self.to_boundary4(context), size)
        context = self.pool(self.context5(context))
        maps = self.detail5(torch.relu(detail)), context, self.boundary5(torch.relu(boundaries))
        return maps, (first, boundaries)


@register_network(
    "pidnet_s",
    PaperFacts(
        source="PIDNet, Table 6",
        input_size=(1024, 2048),
        parameters=PrintedFigure("7.6M"),
        multiply_adds=PrintedFigure("47.6G"),
        multiply_adds_off=-0.0085,
        why="47.19 G of convolutions; the paper does not say what else it counts, fvcore's counts give 47.68 G",
    ),
)
def pidnet_s(num_classes: int) -> SegmentationNetwork:
    """PIDNet-S; its training adds heads for classes (weight 0.4) and boundaries (20).

    The paper's fourth loss, of the classes of pixels on predicted boundaries, is left out.
    """
    backbone = PIDNetBackbone()
    decoder = BoundaryFusion(backbone.out_channels)
    makers = [partial(SegmentationHead, 64, 128, num_classes), partial(SegmentationHead, 64, 32, 1)]
    return SupervisedNetwork(backbone, decoder, SegmentationHead(backbone.out_channels, 128, num_classes), makers)
