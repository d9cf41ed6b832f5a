"""Where the taps of a kernel with a fractional dilation rate fall, on one axis.

Tap i of a kernel of size k, i = -(k // 2) ... k // 2, reads at the distance i r: between the values at
floor(i r) and floor(i r) + 1, of which the second weighs i r - floor(i r). Rows and columns separate.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Tap(NamedTuple):
    """One tap: it reads (1 - fraction) x[low] + fraction x[low + 1], and moves by ``number`` where the rate moves by 1.

    A whole distance has fraction 0 and so the slope of the interval above it: taps before the centre have the left,
    taps behind it the right derivative with respect to the rate, which is what ``deform_conv2d`` computes.
    """

    number: int
    low: int
    fraction: float


def taps_of(rate: float, kernel: int) -> tuple[Tap, ...]:
    """The taps of a kernel of odd size ``kernel`` in order."""
    half = kernel // 2
    distances = [index * rate for index in range(-half, half + 1)]
    return tuple(
        Tap(index, math.floor(distance), distance - math.floor(distance))
        for index, distance in enumerate(distances, start=-half)
    )


class Reach(NamedTuple):
    """Which outputs a tap reaches on one axis, and what these read in a source with a frame of one zero at each end."""

    number: int
    fraction: float
    outputs: slice
    low: slice
    high: slice

    @property
    def is_empty(self) -> bool:
        """Whether the tap falls beside the image for every output."""
        return bool(self.outputs.stop <= self.outputs.start)


def reach_of(tap: Tap, size: int, out_size: int, stride: int) -> Reach:
    """The outputs, of ``out_size``, that ``tap`` gives a value from an axis of ``size``."""
    start = max(0, -((1 + tap.low) // stride))
    stop = min(out_size, (size - 1 - tap.low) // stride + 1)
    if stop <= start:
        return Reach(tap.number, tap.fraction, slice(0, 0), slice(0, 0), slice(0, 0))
    first = stride * start + tap.low + 1
    last = first + stride * (stop - start - 1)
    low, high = slice(first, last + 1, stride), slice(first + 1, last + 2, stride)
    return Reach(tap.number, tap.fraction, slice(start, stop), low, high)
