"""Which pixels the taps of a kernel with a fractional dilation rate read.

Tap i of a kernel of size k, i = -(k // 2) ... k // 2, samples at the offset i r. Linear interpolation blends the values
at floor(i r) and floor(i r) + 1, with the weight i r - floor(i r) for the second. Rows and columns are independent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from dnas.ops.fractional.outputs import output_size


class Tap(NamedTuple):
    """One tap on one axis, which reads (1 - fraction) x[floor] + fraction x[floor + 1].

    The derivative of its offset with respect to the rate is ``kernel_index``. An integer offset has fraction 0, so the
    slope of the interpolation is that of the interval above it. Taps before the centre thus have the left and taps
    after it the right derivative with respect to the rate, as in ``deform_conv2d``.
    """

    kernel_index: int
    floor: int
    fraction: float


def kernel_taps(rate: float, kernel_size: int) -> tuple[Tap, ...]:
    """The taps of a kernel of odd size, by ascending kernel index."""
    half = kernel_size // 2
    taps = []
    for index in range(-half, half + 1):
        floor = math.floor(index * rate)
        taps.append(Tap(index, floor, index * rate - floor))
    return tuple(taps)


class TapRange(NamedTuple):
    """The outputs for which a tap reads inside the image, and the slices of the padded input that it reads for them.

    The input is padded with one zero at each end. ``lower`` and ``upper`` are the two neighbours to interpolate.
    """

    kernel_index: int
    fraction: float
    outputs: slice
    lower: slice
    upper: slice

    @property
    def is_empty(self) -> bool:
        """Whether the tap reads outside the image for every output."""
        return bool(self.outputs.stop <= self.outputs.start)


def tap_range(tap: Tap, size: int, out_size: int, stride: int) -> TapRange:
    """The range of ``tap`` on an axis of ``size`` inputs and ``out_size`` outputs."""
    start = max(0, -((1 + tap.floor) // stride))
    stop = min(out_size, (size - 1 - tap.floor) // stride + 1)
    if stop <= start:
        return TapRange(tap.kernel_index, tap.fraction, slice(0, 0), slice(0, 0), slice(0, 0))
    first = stride * start + tap.floor + 1
    last = first + stride * (stop - start - 1)
    lower, upper = slice(first, last + 1, stride), slice(first + 1, last + 2, stride)
    return TapRange(tap.kernel_index, tap.fraction, slice(start, stop), lower, upper)


class ConvGeometry(NamedTuple):
    """The sizes of one convolution, and its taps on both axes that read inside the image.

    ``in_channels`` and ``out_channels`` are those of one group.
    """

    row_taps: tuple[Tap, ...]
    column_taps: tuple[Tap, ...]
    kernel_size: int
    stride: int
    groups: int
    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, rate: float, stride: int, groups: int) -> ConvGeometry:
        """The geometry for the input (N, C, H, W) and the weight (O, C / groups, k, k)."""
        height, width = x.shape[-2:]
        kernel_size = weight.shape[-1]
        out_size = output_size(x, stride)
        channels = (x.shape[1] // groups, weight.shape[0] // groups)
        taps = kernel_taps(rate, kernel_size)
        rows = tuple(tap for tap in taps if not tap_range(tap, height, out_size[0], stride).is_empty)
        # Columns are computed at stride 1 and subsampled at the end.
        columns = tuple(tap for tap in taps if not tap_range(tap, width, width, 1).is_empty)
        return cls(rows, columns, kernel_size, stride, groups, x.shape[0], *channels, (height, width), out_size)

    @property
    def row_length(self) -> int:
        """The values of one row of a padded map: the columns of the input and one zero."""
        return self.size[1] + 1

    @property
    def values_per_output_row(self) -> int:
        """The values of all intermediate maps that one output row of one image and group needs."""
        maps = len(self.row_taps) * self.in_channels + (2 * len(self.column_taps) - 1) * self.out_channels
        return maps * self.row_length

    def weight_to_matrix(self, weight: Tensor) -> Tensor:
        """The weight of the taps that read inside the image.

        (O, C / groups, k, k) -> (groups, columns x out_channels, rows x in_channels).
        """
        taps = self._inside(
            weight.view(self.groups, self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        )
        return taps.permute(0, 4, 1, 3, 2).flatten(1, 2).flatten(2)

    def matrix_to_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_to_matrix`, with zeros for the taps outside the image."""
        shape = (self.groups, self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        weight = matrix.new_zeros(shape)
        taps = matrix.view(self.groups, len(self.column_taps), self.out_channels, len(self.row_taps), self.in_channels)
        self._inside(weight).copy_(taps.permute(0, 2, 4, 3, 1))
        return weight.view(-1, self.in_channels, self.kernel_size, self.kernel_size)

    def _inside(self, weight: Tensor) -> Tensor:
        """A view (..., rows, columns) of the taps that read inside the image; these are contiguous."""
        half = self.kernel_size // 2
        rows, columns = (
            slice(taps[0].kernel_index + half, taps[-1].kernel_index + half + 1)
            for taps in (self.row_taps, self.column_taps)
        )
        return weight[..., rows, columns]
