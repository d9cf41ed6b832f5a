"""From searched parameters to a discrete network."""

from derive.architecture import Architecture, Branch, Cell
from derive.decode import Choices, decode, downsampling_layers
from derive.inherit import inherit_weights
from derive.sampling import sample_architectures

__all__ = [
    "Architecture",
    "Branch",
    "Cell",
    "Choices",
    "decode",
    "downsampling_layers",
    "inherit_weights",
    "sample_architectures",
]
