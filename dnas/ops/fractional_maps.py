"""The steps of the separable fractional-dilation convolution and their adjoints, on the maps of one part of the work.

A line of a map is a line of the image and one zero. That makes a shift along columns one shift of the flat map: what it
carries from one line to the next is that zero, or lies in columns that the tap does not read and that are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dnas.ops.fractional_parts import Block, Problem, Workspace, length
from dnas.ops.fractional_taps import Reach, Tap, reach_of


def framed(x: Tensor, problem: Problem, block: Block, space: Workspace) -> Tensor:
    """The block of (N, C, H, W) as (groups, channels, images, H + 2, W + 1), with a line of zeros at both ends."""
    frame = space.take_zeros("framed", *_images(block, problem.in_width), problem.size[0] + 2, problem.line)
    frame[..., 1:-1, :-1] = block.of(x, problem.groups)
    return frame


def framed_gradient(grad: Tensor, problem: Problem, block: Block, strip: slice, space: Workspace) -> Tensor:
    """The strip of the output's gradient as flat maps (groups, channels, images, 1 + lines + 1).

    With a stride, the columns between those of the output are zero.
    """
    size = length(strip) * problem.line
    frame = space.take_zeros("framed gradient", *_images(block, problem.out_width), size + 2)
    lines = frame[..., 1:-1].unflatten(-1, (-1, problem.line))  # type: ignore[no-untyped-call]
    lines[..., : -1 : problem.stride] = block.of(grad, problem.groups)[..., strip, :]
    return frame


def _images(block: Block, width: int) -> tuple[int, int, int]:
    return (length(block.groups), width, length(block.images))


def reaches(problem: Problem, strip: slice) -> Iterator[tuple[int, Reach]]:
    """What the strip's rows read by each tap that reads anything, with the tap's place among the problem's rows."""
    for index, tap in enumerate(problem.rows):
        moved = Tap(tap.number, tap.low + problem.stride * strip.start, tap.fraction)
        reach = reach_of(moved, problem.size[0], length(strip), problem.stride)
        if not reach.is_empty:
            yield index, reach


def row_maps(frame: Tensor, problem: Problem, strip: slice, space: Workspace) -> Tensor:
    """The input interpolated for every row of the kernel: (groups, rows, channels, images, strip, W + 1)."""
    groups, channels, images = frame.shape[:3]
    shape = (groups, len(problem.rows), channels, images, length(strip), problem.line)
    maps = space.take("maps", *shape)
    found = dict(reaches(problem, strip))
    for index in range(len(problem.rows)):
        if index in found:
            _interpolate_rows(frame, maps[:, index], found[index])
        else:
            maps[:, index].zero_()
    return maps


def _interpolate_rows(frame: Tensor, target: Tensor, reach: Reach) -> None:
    if reach.outputs.start > 0:
        target[..., : reach.outputs.start, :].zero_()
    if reach.outputs.stop < target.shape[-2]:
        target[..., reach.outputs.stop :, :].zero_()
    low, written = frame[..., reach.low, :], target[..., reach.outputs, :]
    if reach.fraction == 0:
        written.copy_(low)
    else:
        torch.lerp(low, frame[..., reach.high, :], reach.fraction, out=written)


def add_adjoint_of_rows(grad_map: Tensor, grad_frame: Tensor, reach: Reach) -> None:
    """Add to the frame's gradient what one tap's interpolation passes back."""
    passed = grad_map[..., reach.outputs, :]
    grad_frame[..., reach.low, :].add_(passed, alpha=1 - reach.fraction)
    if reach.fraction:
        grad_frame[..., reach.high, :].add_(passed, alpha=reach.fraction)


def slope_of_rows(grad_map: Tensor, frame: Tensor, reach: Reach, space: Workspace) -> Tensor:
    """The rate's gradient through one tap's interpolation: d ((1 - f) a + f b) = (b - a) number."""
    passed = grad_map[..., reach.outputs, :]
    difference = space.take("spread", *passed.shape)  # which has been contracted
    torch.sub(frame[..., reach.high, :], frame[..., reach.low, :], out=difference)
    return difference.mul_(passed).sum() * reach.number


def contract(matrix: Tensor, maps: Tensor, count: int, name: str, space: Workspace) -> Tensor:
    """Matrices (groups, count x channels, maps x channels') by maps (groups, maps, channels', images, strip, W + 1)."""
    flat = maps.flatten(3).flatten(1, 2)
    groups, _, _, *places = maps.shape
    product = space.take(name, groups, count, matrix.shape[1] // count, *places)
    torch.bmm(matrix, flat, out=product.view(groups, matrix.shape[1], -1))
    return product


def sum_of_columns(sums: Tensor, problem: Problem) -> Tensor:
    """The output (groups, channels, images, strip, W + 1) from the maps of the columns, which are overwritten.

    The last column of the output holds anything.
    """
    centre = next(index for index, tap in enumerate(problem.columns) if tap.number == 0)
    total = sums[:, centre]
    for index, tap in enumerate(problem.columns):
        if index != centre:
            sums[:, index][..., _unread(tap, problem)] = 0
            flat = sums[:, index].flatten(-2)
            _add_shifted(total.flatten(-2), flat, tap.low, 1 - tap.fraction)
            _add_shifted(total.flatten(-2), flat, tap.low + 1, tap.fraction)
    return total


def _unread(tap: Tap, problem: Problem) -> slice:
    """The columns of the input that no column of the output reads by this tap, and no shift may carry on."""
    return slice(0, tap.low) if tap.low >= 0 else slice(problem.line + tap.low, problem.line)


def _add_shifted(total: Tensor, flat: Tensor, shift: int, factor: float) -> None:
    """Add ``factor`` times what lies ``shift`` further on."""
    if factor == 0:
        return
    size = flat.shape[-1]
    target = total[..., max(0, -shift) : size - max(0, shift)]
    target.add_(flat[..., max(0, shift) : size - max(0, -shift)], alpha=factor)


def spread_over_columns(
    frame: Tensor, problem: Problem, slopes: Sequence[Tap], strip: slice, space: Workspace
) -> Tensor:
    """The adjoint of :func:`sum_of_columns`: (groups, columns, channels, images, strip, W + 1).

    Behind the columns come the derivatives with respect to the distance of the taps ``slopes``. ``frame`` is the
    gradient as of :func:`framed_gradient`.
    """
    taps = (*problem.columns, *slopes)
    groups, channels, images = frame.shape[:3]
    spread = space.take("spread", groups, len(taps), channels, images, length(strip), problem.line)
    for index, tap in enumerate(taps):
        is_slope = index >= len(problem.columns)
        flat = spread[:, index].flatten(-2)
        if tap.number == 0:
            flat.copy_(frame[..., 1:-1])
            continue
        size = flat.shape[-1]
        start, stop = max(0, tap.low), min(size, size + tap.low + 1)
        written = flat[..., start:stop]
        low, high = (frame[..., start + 1 - read : stop + 1 - read] for read in (tap.low, tap.low + 1))
        if is_slope:
            torch.sub(high, low, out=written)
        else:
            torch.lerp(low, high, tap.fraction, out=written)
        spread[:, index][..., _unread(tap, problem)] = 0
    return spread
