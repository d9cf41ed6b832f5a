"""Reference implementation of a cell, for the tests of :func:`run_cell`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.ops import SuperConvBlock, SuperFactorizedReduce, SuperSkip, SuperZoomedConv, fit_channels
from dnas.ops.convolution import pad_to_even, zoomed
from search_spaces.fasterseg.cells import CellOutput, weighted_sum


def run_cell_reference(x: Tensor, outputs: Sequence[CellOutput]) -> list[Tensor]:
    """FasterSeg Eq. 2 for every output: each operator separately, with sliced weights, then the weighted sum."""
    return [
        torch.cat([_part(part, one, w) for part, w in zip(x.chunk(len(one.weights)), one.weights, strict=True)])
        for one in outputs
    ]


def _part(x: Tensor, output: CellOutput, weights: Mapping[str, Tensor | None]) -> Tensor:
    maps = [_operator(output.operators[name], x, output.width) for name in weights]
    return weighted_sum(maps, [x.new_ones(()) if weight is None else weight for weight in weights.values()])


def _operator(module: nn.Module, x: Tensor, width: int) -> Tensor:
    if isinstance(module, SuperConvBlock):
        for layer in module.chain().layers:
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
    if isinstance(module, SuperSkip):
        return fit_channels(x, width)
    out: Tensor = module(x, width)
    return out
