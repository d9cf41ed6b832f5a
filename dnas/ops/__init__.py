"""Searchable operators and their discrete counterparts."""

from dnas.ops.convolution import ConvBlock, ConvNormAct, FactorizedReduce, ZoomedConv
from dnas.ops.fractional import (
    FractionalConv2d,
    block_of,
    clamp_dilations,
    floor_and_ceil,
    fractional_conv2d,
    fractional_layers,
    layers_by_block,
    make_fractional,
    nearest,
    round_dilations,
)
from dnas.ops.joint_norm import joint_norm_act
from dnas.ops.leading import GradientMemory, forget_memory, joint_conv2d
from dnas.ops.operators import OPERATORS, make_operator, make_superkernel
from dnas.ops.resampling import halve, resize
from dnas.ops.superkernel import (
    SuperConvBlock,
    SuperConvNormAct,
    SuperFactorizedReduce,
    SuperZoomedConv,
    WidthNorm,
    fit_channels,
    self_gathering,
)
from dnas.ops.turns import Turns

__all__ = [
    "OPERATORS",
    "ConvBlock",
    "ConvNormAct",
    "FactorizedReduce",
    "FractionalConv2d",
    "GradientMemory",
    "SuperConvBlock",
    "SuperConvNormAct",
    "SuperFactorizedReduce",
    "SuperZoomedConv",
    "Turns",
    "WidthNorm",
    "ZoomedConv",
    "block_of",
    "clamp_dilations",
    "fit_channels",
    "floor_and_ceil",
    "forget_memory",
    "fractional_conv2d",
    "fractional_layers",
    "halve",
    "joint_conv2d",
    "joint_norm_act",
    "layers_by_block",
    "make_fractional",
    "make_operator",
    "make_superkernel",
    "nearest",
    "resize",
    "round_dilations",
    "self_gathering",
]
