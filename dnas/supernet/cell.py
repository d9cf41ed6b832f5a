"""Mixed operators: all choices of a cell, weighted (FasterSeg Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnas.ops import make_superkernel


class MixedOperator(nn.ModuleDict):
    """Every operator between the same maps; the output is their weighted sum."""

    def __init__(self, operators: Sequence[str], in_channels: int, widths: Sequence[int], stride: int = 1) -> None:
        super().__init__({name: make_superkernel(name, in_channels, widths, stride) for name in operators})

    def forward(self, x: Tensor, weights: Tensor, width: int) -> Tensor:
        """(N, C, H, W) and (operators,) weights -> (N, width, ceil(H / stride), ceil(W / stride))."""
        outputs = (operator(x, width) for operator in self.values())
        return weighted_sum(list(outputs), list(weights.unbind()))


def weighted_sum(maps: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of the maps, all of one shape, each times its scalar weight."""
    total = maps[0] * weights[0].to(maps[0].dtype)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        total = torch.addcmul(total, x, weight.to(x.dtype))  # one pass over memory instead of two
    return total
