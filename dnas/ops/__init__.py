"""Searchable operators and their discrete counterparts."""

from dnas.ops.convolution import ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv, resize
from dnas.ops.fractional import fractional_conv2d
from dnas.ops.fractional_blocks import block_of, layers_by_block
from dnas.ops.fractional_module import FractionalConv2d, clamp_dilations, fractional_layers
from dnas.ops.fractional_network import floor_and_ceil, make_fractional, nearest, round_dilations
from dnas.ops.operators import OPERATORS, make_operator, make_superkernel
from dnas.ops.superkernel import SuperConvNormAct, WidthNorm, fit_channels

__all__ = [
    "OPERATORS",
    "ConvBlock",
    "ConvNormAct",
    "FactorizedReduce",
    "FractionalConv2d",
    "SuperConvNormAct",
    "WidthNorm",
    "ZoomedConv",
    "block_of",
    "clamp_dilations",
    "fit_channels",
    "floor_and_ceil",
    "fractional_conv2d",
    "fractional_layers",
    "layers_by_block",
    "make_fractional",
    "make_operator",
    "make_superkernel",
    "nearest",
    "resize",
    "round_dilations",
]
