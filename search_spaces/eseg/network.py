"""A network like ESeg whose pyramid's levels, links and repetitions are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.choices import (
    ChoiceBatchNorm2d,
    ChoiceConv2d,
    ChoiceConvNorm,
    ChoiceGroupConv2d,
    InputChoice,
    Lazy,
    WidthChoice,
)
from dnas.ops import ResizeTo, resize
from search_spaces.eseg.encoder import ChoiceEncoder

LAST_OF_ENCODER = 5
"""P5, at 1/32; coarser levels are pooled."""


class ChoiceFusionNode(nn.Module):
    """Weighted mean of maps of neighbouring levels, then activation and separable convolution (BiFPN).

    Maps of another size than the first one's are brought to it: finer ones by max pooling, coarser ones by repetition.
    """

    def __init__(self, inputs: int, channels: WidthChoice) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.depth_wise = ChoiceGroupConv2d(channels, 3)
        self.point_wise = ChoiceConv2d(channels, channels)
        self.norm = ChoiceBatchNorm2d(channels)
        self.halve = nn.MaxPool2d(3, 2, 1)

    def forward(self, own: Tensor, *others: Tensor) -> Tensor:
        """Fuse maps (N, C, H, W) to the size of ``own``."""
        weights = F.relu(self.weights)
        factors = (weights / (weights.sum() + 1e-4)).unbind()  # EfficientDet's epsilon
        total = own * factors[0]
        for factor, other in zip(factors[1:], others, strict=True):
            total = total + factor * self._fitted(other, own.shape[-2:])
        result: Tensor = self.norm(self.point_wise(self.depth_wise(F.relu(total))))
        return result

    def _fitted(self, x: Tensor, size: torch.Size) -> Tensor:
        if x.shape[-2:] == size:
            return x
        if x.shape[-2] > size[0] or x.shape[-1] > size[1]:
            halved: Tensor = self.halve(x)
            return halved
        return F.interpolate(x, size=size, mode="nearest")


class ChoiceBiFPNLayer(nn.Module):
    """A top-down and a bottom-up path; every node either fuses its neighbour's map or passes its own on.

    ``levels``: the number of levels from the finest to the coarsest that can be chosen.
    """

    def __init__(self, levels: int, finest: int, channels: WidthChoice, name: str) -> None:
        super().__init__()

        def link(direction: str, level: int) -> InputChoice:
            return InputChoice(("fused", "own"), kind="link", name=f"{name}.{direction}_p{level + finest}")

        self.down = nn.ModuleList(ChoiceFusionNode(2, channels) for _ in range(levels - 1))
        self.up = nn.ModuleList(ChoiceFusionNode(3, channels) for _ in range(levels - 1))
        self.last = nn.ModuleList(ChoiceFusionNode(2, channels) for _ in range(levels - 1))
        self.down_links = nn.ModuleList(link("down", level) for level in range(levels - 1))
        self.up_links = nn.ModuleList(link("up", level) for level in range(1, levels))

    def forward(self, features: Sequence[Lazy]) -> list[Lazy]:
        """Fuse ``features``, finest first."""
        top = len(features) - 1
        refined = [features[top]]
        for level in range(top - 1, -1, -1):
            node, coarser = self.down[level], refined[0]
            fused = Lazy(partial(_node, node, [features[level], coarser]))
            refined.insert(0, Lazy(partial(self.down_links[level], [fused, features[level]])))
        results = [refined[0]]
        for level in range(1, top + 1):
            # The coarsest level has no refined map; its node is another one.
            inputs = [features[level], *([refined[level]] if level < top else []), results[-1]]
            node = self.up[level - 1] if level < top else self.last[level - 1]
            fused = Lazy(partial(_node, node, inputs))
            results.append(Lazy(partial(self.up_links[level - 1], [fused, refined[level]])))
        return results


class LevelSum(nn.Module):
    """The sum of all levels with softmax weights, at the size of the finest (ESeg, section 3.1)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(levels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, C, h, w), finest first -> (N, C, H, W)."""
        weights = self.weights[: len(maps)].softmax(0).unbind()
        total = maps[0] * weights[0]
        for weight, one in zip(weights[1:], maps[1:], strict=True):
            total = total + weight * resize(one, maps[0].shape[-2:])
        return total


class ESegSupernet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, classes, H, W): encoder, BiFPN from ``finest`` to a chosen level, head.

    ``coarsest``: the levels that may be the last one, such as 5 to 9. ``repeats``: the largest number of BiFPN layers.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: ChoiceEncoder,
        pyramid_widths: Sequence[int],
        finest: int,
        coarsest: Sequence[int],
        repeats: int,
    ) -> None:
        super().__init__()
        self.encoder, self.finest, self.coarsest = encoder, finest, tuple(coarsest)
        levels = range(finest, max(coarsest) + 1)
        channels = WidthChoice(pyramid_widths, name="pyramid")
        widths = encoder.widths
        sources = [widths[min(level, LAST_OF_ENCODER) - 2] for level in levels]
        self.laterals = nn.ModuleList(ChoiceConvNorm(width, channels, activation=None) for width in sources)
        self.halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.layers = nn.ModuleList(
            ChoiceBiFPNLayer(len(levels), finest, channels, f"bifpn_{number}") for number in range(1, repeats + 1)
        )
        self.repeats = InputChoice(map(str, range(1, repeats + 1)), kind="repeats", name="repeats")
        self.levels = InputChoice((f"p{level}" for level in coarsest), kind="levels", name="levels")
        self.sum = LevelSum(len(levels))
        self.head = ChoiceConv2d(channels, num_classes, bias=True)
        self.resize = ResizeTo()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images."""
        features = [Lazy(partial(_same, one)) for one in self.encoder(images)]
        for _ in range(LAST_OF_ENCODER, max(self.coarsest)):
            features.append(Lazy(partial(_node, self.halve, [features[-1]])))
        pyramid = [
            Lazy(partial(_node, lateral, [one]))
            for lateral, one in zip(self.laterals, features[self.finest - 2 :], strict=True)
        ]
        fused = self.levels([Lazy(partial(self._fused, pyramid[: top - self.finest + 1])) for top in self.coarsest])
        logits: Tensor = self.resize(self.head(fused), images)
        return logits

    def _fused(self, pyramid: Sequence[Lazy]) -> Tensor:
        """The weighted sum of the levels after the chosen number of layers."""
        after = []
        maps = list(pyramid)
        for layer in self.layers:
            maps = layer(maps)
            after.append(maps)
        total: Tensor = self.sum([self.repeats([maps[level] for maps in after]) for level in range(len(pyramid))])
        return total


def _node(module: nn.Module, inputs: Sequence[Lazy]) -> Tensor:
    result: Tensor = module(*(one.value() for one in inputs))
    return result


def _same(x: Tensor) -> Tensor:
    return x
