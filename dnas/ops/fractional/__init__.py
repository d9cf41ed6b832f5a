"""The fractional-dilation convolution of RegSeg: a convolution whose dilation rate is a learnable real number.

``functional`` holds the function, ``module`` the layer, ``conversion`` and ``rounding`` the way of a network from
integer rates to fractional ones and back. ``custom_op`` registers the operator with PyTorch and chooses between two
implementations: ``separable`` (any device) and ``triton_launch`` (CUDA). ``reference`` and ``exportable`` are slower
forms, to test against and to export.
"""

from dnas.ops.fractional.conversion import make_fractional, round_dilations
from dnas.ops.fractional.functional import fractional_conv2d
from dnas.ops.fractional.module import FractionalConv2d, clamp_dilations, fractional_layers
from dnas.ops.fractional.rounding import block_of, floor_and_ceil, layers_by_block, nearest

__all__ = [
    "FractionalConv2d",
    "block_of",
    "clamp_dilations",
    "floor_and_ceil",
    "fractional_conv2d",
    "fractional_layers",
    "layers_by_block",
    "make_fractional",
    "nearest",
    "round_dilations",
]
