"""FasterSeg's grid as a network with choices.

Every node of the grid (level, layer) is a map with a width of its own. It is computed from the map of the same level or
of the next finer one (beta), by one of several operators (alpha). Two ends are chosen, fused and classified.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dnas.choices import ChoiceConv2d, ChoiceConvNorm, InputChoice, Lazy, OperatorChoice, WidthChoice
from dnas.networks.multi_branch import Stem
from dnas.ops import ResizeTo
from search_spaces.fasterseg_dilated.operators import choice_operator


class GridNetwork(nn.Module):
    """Images (N, 3, H, W) -> logits (N, classes, H, W).

    ``layers``: of the grid. ``levels``: number of scales from 1/8 on. ``ratios``: widths are a ratio times the
    downsampling rate. ``end_ratio``: that of stem and head. ``branches``: how many ends are fused.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        layers: int,
        levels: int,
        ratios: Sequence[int],
        operators: Sequence[str],
        end_ratio: int,
        branches: int = 2,
        upper: float = 8.0,
        group_width: int = 8,
    ) -> None:
        super().__init__()
        self.layers, self.scales = layers, [8 * 2**level for level in range(levels)]
        self.stem = Stem(end_ratio)
        self.keep, self.down, self.paths = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        widths: dict[tuple[int, int], WidthChoice | int] = {(0, -1): 8 * end_ratio}
        for layer in range(layers):
            for level, scale in enumerate(self.scales[: layer + 2]):
                key = f"{scale}_{layer}"
                width = WidthChoice([ratio * scale for ratio in ratios], name=f"width_{key}")
                widths[level, layer] = width
                for kind, stride, source in (("keep", 1, (level, layer - 1)), ("down", 2, (level - 1, layer - 1))):
                    if source in widths:
                        made = {
                            n: choice_operator(n, widths[source], width, stride, upper, group_width) for n in operators
                        }
                        getattr(self, kind)[key] = OperatorChoice(made, name=f"{kind}_{key}")
                if key in self.keep and key in self.down:
                    self.paths[key] = InputChoice(("finer", "same"), name=f"path_{key}")
        self.ends = list(itertools.combinations(range(levels), branches))
        names = ["_".join(str(self.scales[level]) for level in end) for end in self.ends]
        self.end = InputChoice(names, kind="ends", name="ends")
        channels = 8 * end_ratio
        self.laterals = nn.ModuleList(ChoiceConvNorm(widths[level, layers - 1], channels) for level in range(levels))
        self.fuse = ChoiceConvNorm(channels * branches, channels, 3)
        self.classifier = ChoiceConv2d(channels, num_classes, bias=True)
        self.resize, self.resize_end = ResizeTo(), ResizeTo()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images."""
        stem: Tensor = self.stem(images)
        maps: dict[tuple[int, int], Lazy] = {(0, -1): Lazy(lambda: stem)}
        for layer in range(self.layers):
            for level in range(min(layer + 2, len(self.scales))):
                maps[level, layer] = Lazy(partial(self._node, maps, level, layer))
        fused = self.end([Lazy(partial(self._fused, maps, stem, end)) for end in self.ends])
        logits: Tensor = self.resize(self.classifier(fused), images)
        return logits

    def _node(self, maps: Mapping[tuple[int, int], Lazy], level: int, layer: int) -> Tensor:
        key = f"{self.scales[level]}_{layer}"
        finer = Lazy(lambda: self.down[key](maps[level - 1, layer - 1].value()))
        same = Lazy(lambda: self.keep[key](maps[level, layer - 1].value()))
        if key in self.paths:
            chosen: Tensor = self.paths[key]([finer, same])
            return chosen
        return (same if key in self.keep else finer).value()

    def _fused(self, maps: Mapping[tuple[int, int], Lazy], stem: Tensor, end: Sequence[int]) -> Tensor:
        parts = []
        for level in end:
            lateral = self.laterals[level](maps[level, self.layers - 1].value())
            parts.append(self.resize_end(lateral, stem) if level else lateral)
        fused: Tensor = self.fuse(torch.cat(parts, 1))
        return fused
