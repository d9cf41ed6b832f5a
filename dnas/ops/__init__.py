"""Searchable operators (superkernels, fractional convolutions) and their discrete counterparts."""

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
from dnas.ops.fused_bn_relu import fused_bn_relu
from dnas.ops.operators import OPERATORS, make_operator, make_superkernel
from dnas.ops.resampling import ResizeTo, halve, resize
from dnas.ops.sliced_conv import GradientBuffer, sliced_conv2d
from dnas.ops.superkernel import (
    ConvolutionChain,
    SearchableOperator,
    SlicedModule,
    SlicedParameter,
    SuperConvBlock,
    SuperConvNormAct,
    SuperFactorizedReduce,
    SuperSkip,
    SuperZoomedConv,
    SwitchableBatchNorm2d,
    fit_channels,
    sliced_parameters,
)

__all__ = [
    "OPERATORS",
    "ConvBlock",
    "ConvNormAct",
    "ConvolutionChain",
    "FactorizedReduce",
    "FractionalConv2d",
    "GradientBuffer",
    "ResizeTo",
    "SearchableOperator",
    "SlicedModule",
    "SlicedParameter",
    "SuperConvBlock",
    "SuperConvNormAct",
    "SuperFactorizedReduce",
    "SuperSkip",
    "SuperZoomedConv",
    "SwitchableBatchNorm2d",
    "ZoomedConv",
    "block_of",
    "clamp_dilations",
    "fit_channels",
    "floor_and_ceil",
    "fractional_conv2d",
    "fractional_layers",
    "fused_bn_relu",
    "halve",
    "layers_by_block",
    "make_fractional",
    "make_operator",
    "make_superkernel",
    "nearest",
    "resize",
    "round_dilations",
    "sliced_conv2d",
    "sliced_parameters",
]
