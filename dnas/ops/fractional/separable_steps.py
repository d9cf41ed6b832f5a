"""The steps of the separable fractional-dilation convolution and their adjoints, on one tile.

Maps are stored with one zero after each row, so their rows have W + 1 values. A shift along columns is then one shift
of the flattened map: what it moves from one row into the next is either that zero, or a column that the tap never
reads, which is zeroed beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dnas.ops.fractional.geometry import ConvGeometry, Tap, TapRange, tap_range
from dnas.ops.fractional.tiling import Tile, Workspace, slice_length


def pad_input(x: Tensor, geometry: ConvGeometry, tile: Tile, workspace: Workspace) -> Tensor:
    """The tile of (N, C, H, W) as (groups, channels, images, H + 2, W + 1), with a row of zeros at both ends."""
    shape = (*_leading_shape(tile, geometry.in_channels), geometry.size[0] + 2, geometry.row_length)
    padded = workspace.padded("padded input", *shape)
    padded[..., 1:-1, :-1] = tile.view(x, geometry.groups)
    return padded


def pad_grad_output(
    grad_output: Tensor, geometry: ConvGeometry, tile: Tile, strip: slice, workspace: Workspace
) -> Tensor:
    """The strip of the output gradient as flattened maps (groups, channels, images, 1 + strip x (W + 1) + 1).

    With a stride, the columns between those of the output are zero.
    """
    size = slice_length(strip) * geometry.row_length
    padded = workspace.padded("padded output gradient", *_leading_shape(tile, geometry.out_channels), size + 2)
    rows = padded[..., 1:-1].unflatten(-1, (-1, geometry.row_length))  # type: ignore[no-untyped-call]
    rows[..., : -1 : geometry.stride] = tile.view(grad_output, geometry.groups)[..., strip, :]
    return padded


def _leading_shape(tile: Tile, channels: int) -> tuple[int, int, int]:
    return (slice_length(tile.groups), channels, slice_length(tile.images))


def row_tap_ranges(geometry: ConvGeometry, strip: slice) -> Iterator[tuple[int, TapRange]]:
    """The ranges of the row taps that read inside the image for this strip, with their places in ``row_taps``."""
    for place, tap in enumerate(geometry.row_taps):
        shifted = Tap(tap.kernel_index, tap.floor + geometry.stride * strip.start, tap.fraction)
        taps = tap_range(shifted, geometry.size[0], slice_length(strip), geometry.stride)
        if not taps.is_empty:
            yield place, taps


def interpolate_rows(padded: Tensor, geometry: ConvGeometry, strip: slice, workspace: Workspace) -> Tensor:
    """The input interpolated for every row of the kernel: (groups, rows, channels, images, strip, W + 1)."""
    groups, channels, images = padded.shape[:3]
    rows = len(geometry.row_taps)
    maps = workspace.empty("row maps", groups, rows, channels, images, slice_length(strip), geometry.row_length)
    ranges = dict(row_tap_ranges(geometry, strip))
    for place in range(rows):
        if place in ranges:
            _interpolate_row(padded, maps[:, place], ranges[place])
        else:
            maps[:, place].zero_()
    return maps


def _interpolate_row(padded: Tensor, target: Tensor, taps: TapRange) -> None:
    if taps.outputs.start > 0:
        target[..., : taps.outputs.start, :].zero_()
    if taps.outputs.stop < target.shape[-2]:
        target[..., taps.outputs.stop :, :].zero_()
    lower, written = padded[..., taps.lower, :], target[..., taps.outputs, :]
    if taps.fraction == 0:
        written.copy_(lower)
    else:
        torch.lerp(lower, padded[..., taps.upper, :], taps.fraction, out=written)


def accumulate_row_adjoint(row_grad: Tensor, grad_padded: Tensor, taps: TapRange) -> None:
    """Add the adjoint of one row tap's interpolation to the gradient of the padded input, in place."""
    grad = row_grad[..., taps.outputs, :]
    grad_padded[..., taps.lower, :].add_(grad, alpha=1 - taps.fraction)
    if taps.fraction:
        grad_padded[..., taps.upper, :].add_(grad, alpha=taps.fraction)


def row_rate_gradient(row_grad: Tensor, padded: Tensor, taps: TapRange, workspace: Workspace) -> Tensor:
    """The rate's gradient through one row tap: d ((1 - f) a + f b) / d rate = (b - a) kernel_index."""
    grad = row_grad[..., taps.outputs, :]
    difference = workspace.empty("column gradients", *grad.shape)  # these have been contracted, so the buffer is free
    torch.sub(padded[..., taps.upper, :], padded[..., taps.lower, :], out=difference)
    return difference.mul_(grad).sum() * taps.kernel_index


def contract_channels(matrix: Tensor, maps: Tensor, count: int, buffer: str, workspace: Workspace) -> Tensor:
    """Multiply maps by one matrix per group; the result is written to the workspace's ``buffer``.

    Matrices (groups, count x channels', maps x channels) by maps (groups, maps, channels, images, strip, W + 1) ->
    (groups, count, channels', images, strip, W + 1).
    """
    flat = maps.flatten(3).flatten(1, 2)
    groups, _, _, *positions = maps.shape
    product = workspace.empty(buffer, groups, count, matrix.shape[1] // count, *positions)
    torch.bmm(matrix, flat, out=product.view(groups, matrix.shape[1], -1))
    return product


def sum_columns(column_maps: Tensor, geometry: ConvGeometry) -> Tensor:
    """Interpolate and sum the column maps, which are overwritten: (groups, channels, images, strip, W + 1).

    The last column of the result is undefined.
    """
    centre = next(place for place, tap in enumerate(geometry.column_taps) if tap.kernel_index == 0)
    total = column_maps[:, centre]
    for place, tap in enumerate(geometry.column_taps):
        if place != centre:
            column_maps[:, place][..., _unread_columns(tap, geometry)] = 0
            flat = column_maps[:, place].flatten(-2)
            _add_shifted(total.flatten(-2), flat, tap.floor, 1 - tap.fraction)
            _add_shifted(total.flatten(-2), flat, tap.floor + 1, tap.fraction)
    return total


def _unread_columns(tap: Tap, geometry: ConvGeometry) -> slice:
    """The input columns that no output column reads by this tap; a shift must not move their values to other rows."""
    return slice(0, tap.floor) if tap.floor >= 0 else slice(geometry.row_length + tap.floor, geometry.row_length)


def _add_shifted(total: Tensor, flat: Tensor, shift: int, factor: float) -> None:
    """``total[i] += factor * flat[i + shift]`` for all i where both exist, in place."""
    if factor == 0:
        return
    size = flat.shape[-1]
    target = total[..., max(0, -shift) : size - max(0, shift)]
    target.add_(flat[..., max(0, shift) : size - max(0, -shift)], alpha=factor)


def column_adjoint(
    padded_grad: Tensor, geometry: ConvGeometry, slope_taps: Sequence[Tap], strip: slice, workspace: Workspace
) -> Tensor:
    """The adjoint of :func:`sum_columns`: (groups, columns + slopes, channels, images, strip, W + 1).

    ``padded_grad`` is the output gradient from :func:`pad_grad_output`. The maps of the column taps are followed by
    those of ``slope_taps``, the adjoint of the interpolation's derivative with respect to the tap's offset.
    """
    taps = (*geometry.column_taps, *slope_taps)
    groups, channels, images = padded_grad.shape[:3]
    shape = (groups, len(taps), channels, images, slice_length(strip), geometry.row_length)
    grads = workspace.empty("column gradients", *shape)
    for place, tap in enumerate(taps):
        is_slope = place >= len(geometry.column_taps)
        flat = grads[:, place].flatten(-2)
        if tap.kernel_index == 0:
            flat.copy_(padded_grad[..., 1:-1])
            continue
        size = flat.shape[-1]
        start, stop = max(0, tap.floor), min(size, size + tap.floor + 1)
        written = flat[..., start:stop]
        lower, upper = (padded_grad[..., start + 1 - s : stop + 1 - s] for s in (tap.floor, tap.floor + 1))
        if is_slope:
            torch.sub(upper, lower, out=written)
        else:
            torch.lerp(lower, upper, tap.fraction, out=written)
        grads[:, place][..., _unread_columns(tap, geometry)] = 0
    return grads
