"""The arithmetic of the field of view (RegSeg, section 3.1).

The papers' symbols: the layers up to a point equal one convolution of kernel k and stride s. A layer of kernel k' and
stride s' makes that k + (k' - 1) s and s s'; a dilation rate r makes the k' of a 3x3 kernel 2 r + 1. The weights leave
no gaps between them only if r <= k / s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution or pooling with a square kernel; a ``dilation`` between two integers reaches as far as the next."""

    kernel: int
    stride: int = 1
    dilation: float = 1


@dataclass(frozen=True)
class Field:
    """What one value sees: ``kernel`` pixels (k), and ``stride`` pixels (s) from one value to the next, on one axis."""

    kernel: Fraction = Fraction(1)
    stride: Fraction = Fraction(1)

    def after(self, layer: Layer) -> Field:
        """The field behind one more layer."""
        reach = (layer.kernel - 1) * math.ceil(layer.dilation)
        return Field(self.kernel + reach * self.stride, self.stride * layer.stride)

    def after_transposed(self, layer: Layer) -> Field:
        """The field behind a transposed convolution, whose stride is an upsampling."""
        taps = -(-((layer.kernel - 1) * math.ceil(layer.dilation) + 1) // layer.stride)
        return Field(self.kernel + (taps - 1) * self.stride, self.stride / layer.stride)

    def after_resize(self, in_size: int, out_size: int, taps: int) -> Field:
        """The field behind an interpolation that reads ``taps`` neighbouring values (1 nearest, 2 bilinear)."""
        return Field(self.kernel + (taps - 1) * self.stride, self.stride * Fraction(in_size, out_size))

    @property
    def pixels(self) -> int:
        """The field of view in pixels."""
        return math.ceil(self.kernel)

    @property
    def largest_dilation(self) -> float:
        """The largest dilation rate of the next layer that leaves no gaps: k / s."""
        return float(self.kernel / self.stride)


def join_fields(fields: Iterable[Field]) -> Field:
    """The field where paths meet, by addition or concatenation: the widest of them.

    The strides of such paths are the same; where one was only known from rounded sizes, the smallest is the true one.
    """
    fields = list(fields)
    return Field(max(field.kernel for field in fields), min(field.stride for field in fields))


def field_of_layers(layers: Iterable[Layer | tuple[int, ...]]) -> Field:
    """The field behind a sequence of layers, each ``(kernel, stride, dilation)``; stride and dilation default to 1."""
    field = Field()
    for layer in layers:
        field = field.after(Layer(*layer))
    return field
