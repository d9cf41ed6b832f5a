"""Field-of-view arithmetic (RegSeg, section 3.1).

In the papers' symbols, a sequence of layers acts like one convolution with kernel size k and stride s. One more layer
with kernel size k' and stride s' changes them to k + (k' - 1) s and s s'. A 3x3 kernel with dilation rate r has
k' = 2 r + 1. Its taps leave no gaps only if r <= k / s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution or pooling with a square kernel; a fractional ``dilation`` counts as the next integer."""

    kernel: int
    stride: int = 1
    dilation: float = 1


@dataclass(frozen=True)
class Field:
    """Field of view along one axis: ``kernel`` pixels (k), with ``stride`` pixels (s) between neighbouring values."""

    kernel: Fraction = Fraction(1)
    stride: Fraction = Fraction(1)

    def after(self, layer: Layer) -> Field:
        """The field after one more layer."""
        reach = (layer.kernel - 1) * math.ceil(layer.dilation)
        return Field(self.kernel + reach * self.stride, self.stride * layer.stride)

    def after_transposed(self, layer: Layer) -> Field:
        """The field after a transposed convolution, whose stride upsamples."""
        taps = -(-((layer.kernel - 1) * math.ceil(layer.dilation) + 1) // layer.stride)
        return Field(self.kernel + (taps - 1) * self.stride, self.stride / layer.stride)

    def after_resize(self, in_size: int, out_size: int, taps: int) -> Field:
        """The field after an interpolation that reads ``taps`` neighbouring values (1 nearest, 2 bilinear)."""
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
    """The field after paths are added or concatenated: the largest of theirs.

    Such paths have equal strides; if they differ because a stride was derived from rounded sizes, the smallest one is
    correct.
    """
    fields = list(fields)
    return Field(max(field.kernel for field in fields), min(field.stride for field in fields))


def field_of_layers(layers: Iterable[Layer | tuple[int, ...]]) -> Field:
    """The field after a sequence of layers, each ``(kernel, stride, dilation)``; stride and dilation default to 1."""
    field = Field()
    for layer in layers:
        field = field.after(Layer(*layer))
    return field
