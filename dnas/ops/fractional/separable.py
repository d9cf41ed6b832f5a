"""The separable form of the fractional-dilation convolution, on any device: interpolate, multiply, interpolate.

The offsets are the same at every position and for all channels, so interpolation separates into rows and columns, and
each may take place before or after the contraction over channels. Here the input is interpolated between rows, once for
every row of the kernel. One matrix product per group contracts these maps with the weight (a partial
im2col, which unfolds only the rows of the kernel) to one map for every column of the kernel. The output is the sum of
the column maps, each shifted and interpolated between columns. For a 3x3 kernel this costs the multiply-adds of an
integer convolution and four interpolations; interpolating for every tap would take eight, and the sum of four
convolutions four times the multiply-adds.

The backward pass runs the adjoint steps in reverse order. The gradient of the weight is one product of row maps and
column gradients. The gradient of the rate has two parts: that through the columns comes from the same product with the
derivatives of the column interpolation, that through the rows is a sum over the row maps.

Work is tiled, so that the maps fit the cache and memory is bounded; no map is saved for the backward pass. With a
stride, all columns are computed and every ``stride``-th is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnas.ops.fractional.geometry import ConvGeometry
from dnas.ops.fractional.outputs import Gradients, empty_like_input
from dnas.ops.fractional.separable_steps import (
    accumulate_row_adjoint,
    column_adjoint,
    contract_channels,
    interpolate_rows,
    pad_grad_output,
    pad_input,
    row_rate_gradient,
    row_tap_ranges,
    sum_columns,
)
from dnas.ops.fractional.tiling import Workspace, row_strips, tiles


def separable_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: float,
    stride: int,
    groups: int,
    *,
    budget: int | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)), in the dtype and memory format of ``x``.

    ``budget`` limits the values of the intermediate maps of one tile; one row of one image and group is the minimum.
    """
    geometry = ConvGeometry.of(x, weight, rate, stride, groups)
    matrix = geometry.weight_to_matrix(weight.to(_compute_dtype(x)))
    out = empty_like_input(x, weight.shape[0], geometry.out_size)
    workspace = Workspace(matrix.dtype, x.device)
    for tile in tiles(geometry, budget):
        padded = pad_input(x, geometry, tile, workspace)
        for strip in row_strips(geometry, tile, budget):
            row_maps = interpolate_rows(padded, geometry, strip, workspace)
            column_maps = contract_channels(
                matrix[tile.groups], row_maps, len(geometry.column_taps), "column maps", workspace
            )
            total = sum_columns(column_maps, geometry)
            if bias is not None:
                total += bias.to(matrix.dtype).view(groups, -1)[tile.groups, :, None, None, None]
            tile.view(out, groups)[..., strip, :] = total[..., : -1 : geometry.stride]
    return out


def separable_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: float,
    stride: int,
    groups: int,
    *,
    needs_input: bool = True,
    needs_rate: bool = True,
    budget: int | None = None,
) -> Gradients:
    """The gradients of input, weight and rate; the row maps are recomputed tile by tile.

    ``budget`` as in :func:`separable_conv2d`.
    """
    geometry = ConvGeometry.of(x, weight, rate, stride, groups)
    matrix = geometry.weight_to_matrix(weight.to(_compute_dtype(x)))
    columns = len(geometry.column_taps)
    slope_taps = [tap for tap in geometry.column_taps if tap.kernel_index] if needs_rate else []
    products = matrix.new_zeros(groups, (columns + len(slope_taps)) * geometry.out_channels, matrix.shape[2])
    grad_x = torch.empty_like(x) if needs_input else None
    grad_rate = matrix.new_zeros(()) if needs_rate else None
    workspace = Workspace(matrix.dtype, x.device)
    for tile in tiles(geometry, budget):
        padded = pad_input(x, geometry, tile, workspace)
        grad_padded = workspace.empty("gradient of padded input", *padded.shape).zero_() if needs_input else None
        for strip in row_strips(geometry, tile, budget):
            padded_grad = pad_grad_output(grad_output, geometry, tile, strip, workspace)
            column_grads = column_adjoint(padded_grad, geometry, slope_taps, strip, workspace)
            row_maps = interpolate_rows(padded, geometry, strip, workspace)
            products[tile.groups].baddbmm_(
                column_grads.flatten(3).flatten(1, 2), row_maps.flatten(3).flatten(1, 2).transpose(1, 2)
            )
            if not (needs_input or needs_rate):
                continue
            # The row maps are not read again: their gradients overwrite their buffer.
            row_grads = contract_channels(
                matrix[tile.groups].transpose(1, 2),
                column_grads[:, :columns],
                len(geometry.row_taps),
                "row maps",
                workspace,
            )
            for place, taps in row_tap_ranges(geometry, strip):
                if grad_rate is not None and taps.kernel_index:
                    grad_rate += row_rate_gradient(row_grads[:, place], padded, taps, workspace)
                if grad_padded is not None:
                    accumulate_row_adjoint(row_grads[:, place], grad_padded, taps)
        if grad_x is not None and grad_padded is not None:
            tile.view(grad_x, groups).copy_(grad_padded[..., 1:-1, :-1])
    grad_matrix = products[:, : matrix.shape[1]]
    if grad_rate is not None:
        grad_rate += _column_rate_gradient(products[:, matrix.shape[1] :], matrix, geometry)
    return Gradients(grad_x, geometry.matrix_to_weight(grad_matrix).to(weight.dtype), grad_rate)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for half-precision inputs, whose interpolation would lose most of its digits, else the input's."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _column_rate_gradient(products: Tensor, matrix: Tensor, geometry: ConvGeometry) -> Tensor:
    """The rate's gradient through the interpolation between columns.

    ``products`` are the products of the row maps with the slopes of all column taps but the centre.
    """
    places = [place for place, tap in enumerate(geometry.column_taps) if tap.kernel_index]
    columns = matrix.view(geometry.groups, len(geometry.column_taps), geometry.out_channels, -1)[:, places]
    offset_grads = (columns * products.view_as(columns)).sum((0, 2, 3))
    return offset_grads @ offset_grads.new_tensor([geometry.column_taps[place].kernel_index for place in places])
