"""The five operators of FasterSeg by name, as plain modules and as superkernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dnas.errors import UserError
from dnas.ops.convolution import ConvBlock, FactorizedReduce, ZoomedConv
from dnas.ops.superkernel import (
    SearchableOperator,
    SuperConvBlock,
    SuperFactorizedReduce,
    SuperSkip,
    SuperZoomedConv,
)

#: In the order of FasterSeg section 3.1.2, which is the order of the alpha logits.
OPERATORS = ("skip", "conv", "conv_x2", "zoomed_conv", "zoomed_conv_x2")


def make_operator(name: str, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """The discrete operator ``name``: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises :class:`UserError` for an unknown name, and for a skip of stride 1 between different widths, which does not
    occur in a derived network (the skip is removed, and its neighbours are connected at the narrower width).
    """
    check_operator(name)
    if name == "skip" and stride == 2:
        return FactorizedReduce(in_channels, out_channels)
    if name == "skip":
        if in_channels != out_channels:
            raise UserError(f"a skip of stride 1 cannot turn {in_channels} channels into {out_channels}: leave it out")
        return nn.Identity()
    kind = ZoomedConv if name.startswith("zoomed") else ConvBlock
    return kind(in_channels, out_channels, stride, depth=_depth(name))


def make_superkernel(name: str, in_channels: int, widths: Sequence[int], stride: int = 1) -> SearchableOperator:
    """The searchable operator ``name`` for up to ``in_channels`` input channels and any output width in ``widths``."""
    check_operator(name)
    if name == "skip":
        return SuperFactorizedReduce(in_channels, widths) if stride == 2 else SuperSkip()
    kind = SuperZoomedConv if name.startswith("zoomed") else SuperConvBlock
    return kind(in_channels, widths, stride, depth=_depth(name))


def check_operator(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` is one of :data:`OPERATORS`."""
    if name not in OPERATORS:
        raise UserError(f"unknown operator {name!r}, expected one of {', '.join(OPERATORS)}")


def _depth(name: str) -> int:
    return 2 if name.endswith("_x2") else 1
