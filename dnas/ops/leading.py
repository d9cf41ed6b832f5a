"""Convolutions by the leading blocks of larger weights, which is what superkernels are made of.

Written out, ``F.conv2d(x, weight[:width, :channels])``, a narrow pass costs as much memory traffic as a wide one: the
gradient of the block is filled up with zeros to the size of the whole weight before it is added. Here the block's
gradient is added where it belongs. On CPUs it is moreover a matrix product over columns, which on the small maps of
the coarse scales takes a seventh of the time of the library's convolution, and several convolutions of one map share
its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

JOIN_FROM_PIXELS = 400
"""On CPUs convolutions of one map run as one from so many pixels on; below, copying weights side by side costs more."""


def leading_block(weight: Tensor, width: int, channels: int) -> Tensor:
    """``weight[:width, :channels]`` of (O, C, k, k), whose gradient is added to ``weight.grad`` without a detour.

    The gradient of a leaf is therefore to be had by ``backward()``; ``torch.autograd.grad`` says that the leaf was
    not used. Towards other tensors both do.
    """
    if tuple(weight.shape[:2]) == (width, channels):
        return weight
    block: Tensor = _LeadingBlock.apply(weight, width, channels)
    return block


class _LeadingBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, width: int, channels: int) -> Tensor:
        ctx.weight = weight
        return weight[:width, :channels]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        weight: Tensor = ctx.weight
        width, channels = gradient.shape[:2]
        if not weight.is_leaf:
            whole = torch.zeros_like(weight)
            whole[:width, :channels] = gradient
            return whole, None, None
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad[:width, :channels] += gradient
        return None, None, None


def joint_conv2d(x: Tensor, weights: Sequence[Tensor], stride: int = 1) -> Tensor:
    """Convolutions of (N, C, H, W) by weights (O_i, C, k, k), "same" padding: (N, sum of O_i, ...) in their order.

    Under autocast it computes, and returns, the lower precision.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(kind))
    result: Tensor = _JointConv.apply(x, stride, *weights)
    return result


class _JointConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, *weights: Tensor) -> Tensor:
        ctx.stride, ctx.size, ctx.kind = stride, x.shape, x.dtype
        # Only the gradients of the weights read the input: without them it need not be kept.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[2:]) else None, *weights)
        padding = weights[0].shape[-1] // 2
        outputs = [F.conv2d(x, group, None, stride, padding) for group in _groups(x, stride, weights)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        stride, padding = ctx.stride, weights[0].shape[-1] // 2
        to_input = None
        if ctx.needs_input_grad[0]:
            to_input = _towards_input(ctx.size, gradient, weights, stride, padding)
        to_weights: list[Tensor | None] = [None] * len(weights)
        if any(ctx.needs_input_grad[2:]):
            to_weights = list(_towards_weights(x, gradient, weights, stride, padding))
        return to_input, None, *to_weights


def _groups(x: Tensor, stride: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights as they are convolved with: side by side, or one by one; of the kind of ``x``."""
    weights = [weight.to(x.dtype) for weight in weights]
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // stride**2
    if len(weights) > 1 and (pixels >= JOIN_FROM_PIXELS or x.is_cuda):
        return [torch.cat(weights)]
    return weights


def _towards_input(size: torch.Size, gradient: Tensor, weights: Sequence[Tensor], stride: int, padding: int) -> Tensor:
    """The gradient of the input, of ``size``."""
    x = gradient.new_empty(1).expand(size)
    groups = _groups(x, stride, weights)
    parts = gradient.split_with_sizes([group.shape[0] for group in groups], dim=1)
    total = None
    for part, group in zip(parts, groups, strict=True):
        found = _convolution_backward(part, x, group, stride, padding, to_weight=False)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _towards_weights(
    x: Tensor, gradient: Tensor, weights: Sequence[Tensor], stride: int, padding: int
) -> Sequence[Tensor]:
    """The gradients of all weights, of their kinds."""
    widths = [weight.shape[0] for weight in weights]
    if x.device.type == "cpu":
        columns = _columns(x, weights[0].shape[-1], stride, padding, gradient.shape[-2:])
        rows = gradient.transpose(0, 1).reshape(gradient.shape[1], -1)
        return [
            (part @ columns).view_as(weight).to(weight.dtype)
            for part, weight in zip(rows.split_with_sizes(widths), weights, strict=True)
        ]
    shape = (sum(widths), *weights[0].shape[1:])
    found = _convolution_backward(gradient, x, x.new_empty(1).expand(shape), stride, padding, to_weight=True)
    return [part.to(weight.dtype) for part, weight in zip(found.split_with_sizes(widths), weights, strict=True)]


def _columns(x: Tensor, side: int, stride: int, padding: int, size: torch.Size) -> Tensor:
    """(N * H * W, C * side * side): what the convolution reads for every pixel of its output of ``size`` (H, W)."""
    padded = F.pad(x, (padding, padding, padding, padding)).contiguous()
    image, channel, row, column = padded.stride()
    windows = padded.as_strided(
        (x.shape[1], side, side, x.shape[0], *size),
        (channel, row, column, image, row * stride, column * stride),
    )
    return windows.reshape(x.shape[1] * side * side, -1).t()


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, to_weight: bool
) -> Tensor:
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        1,
        [not to_weight, to_weight, False],
    )
    return found[int(to_weight)]
