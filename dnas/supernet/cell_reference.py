"""A cell written out, operator by operator: what :func:`dnas.supernet.run_cell` must equal, and is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.ops import SuperConvBlock, SuperFactorizedReduce, SuperZoomedConv, fit_channels
from dnas.ops.convolution import pad_to_even, zoomed
from dnas.supernet.cell import Way, weighted_sum


def run_cell_plainly(x: Tensor, ways: Sequence[Way]) -> list[Tensor]:
    """FasterSeg Eq. 2 for every way: each operator alone, convolving by slices, then the weighted sum."""
    return [
        torch.cat(
            [_part(part, way, weights) for part, weights in zip(x.chunk(len(way.weights)), way.weights, strict=True)]
        )
        for way in ways
    ]


def _part(x: Tensor, way: Way, weights: Mapping[str, Tensor | None]) -> Tensor:
    maps = [_operator(way.operators[name], x, way.width) for name in weights]
    return weighted_sum(maps, [x.new_ones(()) if weight is None else weight for weight in weights.values()])


def _operator(module: nn.Module, x: Tensor, width: int) -> Tensor:
    if isinstance(module, SuperConvBlock):
        for layer in module.convolutions():
            weight = layer.weight[:width, : x.shape[1]]
            x = F.relu(layer.norm(F.conv2d(x, weight, stride=layer.stride, padding=layer.kernel_size // 2)))
        return x
    if isinstance(module, SuperZoomedConv):
        block = module.block
        return zoomed(x, lambda small: _operator(block, small, width), module.stride)
    if isinstance(module, SuperFactorizedReduce):
        x = pad_to_even(x)
        even = F.conv2d(x, module.even[: width - width // 2, : x.shape[1]], stride=2)
        odd = F.conv2d(x[:, :, 1:, 1:], module.odd[: width // 2, : x.shape[1]], stride=2)
        return F.relu(module.norm(torch.cat([even, odd], dim=1)))
    return fit_channels(x, width)
