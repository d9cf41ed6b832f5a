"""Searchable operators and their discrete counterparts."""

from dnas.ops.convolution import ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv, resize
from dnas.ops.operators import OPERATORS, make_operator, make_superkernel
from dnas.ops.superkernel import SuperConvNormAct, WidthNorm, fit_channels

__all__ = [
    "OPERATORS",
    "ConvBlock",
    "ConvNormAct",
    "FactorizedReduce",
    "SuperConvNormAct",
    "WidthNorm",
    "ZoomedConv",
    "fit_channels",
    "make_operator",
    "make_superkernel",
    "resize",
]
