"""The fractional-dilation convolution by interpolation on each side of one matrix product, on any device.

Interpolation is linear and the same for all channels, so it may stand on either side of the contraction of channels.
Every row of the kernel gets a map of the input, interpolated between two of its lines; one matrix product per group
contracts these maps with the weights into a map for every column of the kernel; their sum, each shifted and
interpolated between two columns, is the output. For a 3x3 kernel that is the product of an integer convolution and four
interpolations, where interpolating for every tap takes eight, and the sum of four convolutions has four products.

The gradient of the input goes the same way back, that of the weight is one product of the maps on the two sides. So is
the rate's through the columns (two more maps take part for it); through the rows it is a sum over the maps.

The work is cut into parts whose maps stay in the cache, are never kept for the backward pass and bound the memory. With
a stride, the product has the input's columns, of which the output keeps every ``stride``-th.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dnas.ops.fractional_maps import (
    add_adjoint_of_rows,
    contract,
    framed,
    framed_gradient,
    reaches,
    row_maps,
    slope_of_rows,
    spread_over_columns,
    sum_of_columns,
)
from dnas.ops.fractional_parts import Problem, Workspace, blocks, memory_format_of, strips


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rate: float,
    stride: int,
    groups: int,
    *,
    budget: int | None = None,
) -> Tensor:
    """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)), in the type and memory format of ``x``.

    ``budget`` is how many values the maps may hold at a time (those of one line and group are the least).
    """
    problem = Problem.of(x, weight, rate, stride, groups)
    matrix = problem.matrix(weight.to(_compute_type(x)))
    shape = (problem.batch, weight.shape[0], *problem.out_size)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    space = Workspace(matrix.dtype, x.device)
    for block in blocks(problem, budget):
        frame = framed(x, problem, block, space)
        for strip in strips(problem, block, budget):
            maps = row_maps(frame, problem, strip, space)
            total = sum_of_columns(contract(matrix[block.groups], maps, len(problem.columns), "sums", space), problem)
            if bias is not None:
                total += bias.to(matrix.dtype).view(groups, -1)[block.groups, :, None, None, None]
            block.of(out, groups)[..., strip, :] = total[..., : -1 : problem.stride]
    return out


class Gradients(NamedTuple):
    """Of the input (None unless asked for), the weight and the rate (a scalar; None unless asked for)."""

    x: Tensor | None
    weight: Tensor
    rate: Tensor | None


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: float,
    stride: int,
    groups: int,
    *,
    of_input: bool = True,
    of_rate: bool = True,
    budget: int | None = None,
) -> Gradients:
    """The gradients for the output's gradient ``grad``; the maps of the rows are computed again, part by part.

    ``budget`` as in :func:`convolve`.
    """
    problem = Problem.of(x, weight, rate, stride, groups)
    matrix = problem.matrix(weight.to(_compute_type(x)))
    slopes = [tap for tap in problem.columns if tap.number] if of_rate else []
    products = matrix.new_zeros(groups, (len(problem.columns) + len(slopes)) * problem.out_width, matrix.shape[2])
    grad_x = torch.empty_like(x) if of_input else None
    grad_rate = matrix.new_zeros(()) if of_rate else None
    space = Workspace(matrix.dtype, x.device)
    for block in blocks(problem, budget):
        frame = framed(x, problem, block, space)
        grad_frame = space.take("gradient of framed", *frame.shape).zero_() if of_input else None
        for strip in strips(problem, block, budget):
            passed = framed_gradient(grad, problem, block, strip, space)
            spread = spread_over_columns(passed, problem, slopes, strip, space)
            maps = row_maps(frame, problem, strip, space)
            products[block.groups].baddbmm_(
                spread.flatten(3).flatten(1, 2), maps.flatten(3).flatten(1, 2).transpose(1, 2)
            )
            if not (of_input or of_rate):
                continue
            own = spread[:, : len(problem.columns)]
            # The maps have had their last use: their gradients take their memory.
            grad_maps = contract(matrix[block.groups].transpose(1, 2), own, len(problem.rows), "maps", space)
            for index, reach in reaches(problem, strip):
                if grad_rate is not None and reach.number:
                    grad_rate += slope_of_rows(grad_maps[:, index], frame, reach, space)
                if grad_frame is not None:
                    add_adjoint_of_rows(grad_maps[:, index], grad_frame, reach)
        if grad_x is not None and grad_frame is not None:
            block.of(grad_x, groups).copy_(grad_frame[..., 1:-1, :-1])
    of_weight = products[:, : matrix.shape[1]]
    if grad_rate is not None:
        grad_rate += _slope_of_columns(products[:, matrix.shape[1] :], matrix, problem)
    return Gradients(grad_x, problem.weight(of_weight).to(weight.dtype), grad_rate)


def _compute_type(x: Tensor) -> torch.dtype:
    """Half precision is computed in float32: the interpolation would lose most of its digits."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _slope_of_columns(products: Tensor, matrix: Tensor, problem: Problem) -> Tensor:
    """The rate's gradient through the interpolation along columns.

    ``products`` are the weights' gradients for the columns' derivatives, of all taps but the centre.
    """
    sides = [index for index, tap in enumerate(problem.columns) if tap.number]
    columns = matrix.view(problem.groups, len(problem.columns), problem.out_width, -1)[:, sides]
    shares = (columns * products.view_as(columns)).sum((0, 2, 3))
    return shares @ shares.new_tensor([problem.columns[index].number for index in sides])
