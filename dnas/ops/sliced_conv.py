"""Convolutions with leading slices of larger weights, the basis of superkernels.

With ``F.conv2d(x, weight[:width, :channels])``, training at a narrow width costs as much memory traffic as at the
widest: the gradient of the slice is padded with zeros to the size of the weight before it is accumulated. A
:class:`GradientBuffer` adds the gradient to the slice in place. On a CPU the weight gradient is also computed as a
matrix product with unfolded columns (im2col). On the small maps of the coarse scales this takes a seventh of the time
of PyTorch's convolution, and several convolutions of one map share the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FUSE_FROM_PIXELS = 400
"""On a CPU, convolutions of one map are fused from this number of output pixels on; below, concatenating large weights
costs more than it saves."""
FUSE_UP_TO_VALUES = 1_200_000
"""Weights of up to this many values in total are always concatenated."""


class GradientBuffer:
    """Accumulates the gradient of a weight of which only leading slices are used.

    tensor: the tensor to which gradients are added, with the shape of the weight and possibly a lower precision; None
        until it is needed. The optimiser sets its initial content: zeros, or the decayed momentum, which then becomes
        the new momentum without extra memory for the gradient.
    filled: whether a gradient was added since the optimiser reset it.
    """

    def __init__(self, weight: Tensor, tensor: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        """``tensor`` None allocates zeros of ``dtype``, by default that of ``weight``, on first use."""
        self.tensor, self.filled = tensor, False
        self._dtype = weight.dtype if dtype is None else dtype

    @torch.no_grad()
    def accumulator(self, weight: Tensor) -> Tensor:
        """The tensor to which a gradient of ``weight`` is added; marks the buffer as filled."""
        if self.tensor is None:
            self.tensor = torch.zeros_like(weight, dtype=self._dtype)
        self.filled = True
        return self.tensor


def sliced_conv2d(
    x: Tensor,
    weights: Sequence[Tensor],
    stride: int = 1,
    widths: Sequence[int] | None = None,
    buffers: Sequence[GradientBuffer | None] | None = None,
) -> Tensor:
    """Convolve (N, C, H, W) with slices of the weights and concatenate: (N, sum of widths, H', W'), "same" padding.

    Of each weight (O, I, k, k) the first C input channels are used, and the first filters as given by ``widths``, by
    default all.

    If ``buffers`` has a :class:`GradientBuffer` for a weight, the backward pass adds the gradient to it instead of
    returning it to autograd: ``torch.autograd.grad`` then reports the weight as unused. Under autocast the result has
    the lower precision.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(kind))
    chosen = [weight.shape[0] for weight in weights] if widths is None else list(widths)
    attached = [None] * len(weights) if buffers is None else list(buffers)
    result: Tensor = _SlicedConv.apply(x, stride, chosen, attached, *weights)
    return result


class _SlicedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        stride: int,
        widths: list[int],
        buffers: list[GradientBuffer | None],
        *weights: Tensor,
    ) -> Tensor:
        # Parameters outlive the graph, so they are not saved for backward.
        ctx.weights, ctx.widths, ctx.buffers, ctx.stride, ctx.size = weights, widths, buffers, stride, x.shape
        padding = weights[0].shape[-1] // 2
        kernels = _fused(x, stride, _slices(weights, widths, x))
        # The input is needed only for the gradients of the weights. On a GPU a small joined kernel is kept, as it would
        # wait for joining it again.
        joined = x.is_cuda and len(weights) > 1 and kernels[0].numel() <= FUSE_UP_TO_VALUES
        ctx.save_for_backward(x if any(ctx.needs_input_grad[4:]) else None, kernels[0] if joined else None)
        outputs = [F.conv2d(x, kernel, None, stride, padding) for kernel in kernels]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, kernel), weights = ctx.saved_tensors, ctx.weights
        stride, padding = ctx.stride, weights[0].shape[-1] // 2
        if all(ctx.needs_input_grad[i] for i in (0, *range(4, 4 + len(weights)))) and x.is_cuda:
            return _both_gradients(ctx, x, kernel, gradient, padding)
        to_input = None
        if ctx.needs_input_grad[0]:
            like_input = gradient.new_empty(ctx.size) if x is None else x  # only its shape and type are used
            slices = [kernel] if kernel is not None else _slices(weights, ctx.widths, like_input)
            to_input = _input_gradient(like_input, gradient, slices, stride, padding)
        to_weights: list[Tensor | None] = [None] * len(weights)
        if wanted := [index for index, want in enumerate(ctx.needs_input_grad[4:]) if want]:
            parts = gradient.split_with_sizes(ctx.widths, dim=1)
            gradient = gradient if len(wanted) == len(weights) else torch.cat([parts[i] for i in wanted], dim=1)
            targets = [_Slice(weights[i], ctx.widths[i], ctx.buffers[i]) for i in wanted]
            found = _weight_gradients(x, gradient, targets, stride, padding)
            for index, weight_gradient in zip(wanted, found, strict=True):
                to_weights[index] = weight_gradient
        return to_input, None, None, None, *to_weights


def _both_gradients(
    ctx: Any, x: Tensor, kernel: Tensor | None, gradient: Tensor, padding: int
) -> tuple[Tensor | None, ...]:
    """The gradients of the input and of all weights by one call, as a GPU would wait for the second one."""
    if kernel is None:
        slices = _slices(ctx.weights, ctx.widths, x)
        kernel = slices[0] if len(slices) == 1 else torch.cat(slices)
    to_input, to_kernel = _convolution_backward(gradient, x, kernel, ctx.stride, padding, [True, True])
    targets = [_Slice(*of_weight) for of_weight in zip(ctx.weights, ctx.widths, ctx.buffers, strict=True)]
    return to_input, None, None, None, *_add_all(targets, to_kernel.split_with_sizes(ctx.widths))


def _add_all(targets: Sequence[_Slice], parts: Sequence[Tensor]) -> list[Tensor | None]:
    """:func:`_add` for each part, by one kernel if all weights are used whole."""
    whole = [
        target.buffer.accumulator(target.weight)
        for target, part in zip(targets, parts, strict=True)
        if target.buffer is not None and part.shape == target.weight.shape
    ]
    if len(whole) < len(parts) or any(total.dtype != parts[0].dtype for total in whole):
        return [_add(target, part) for target, part in zip(targets, parts, strict=True)]
    torch._foreach_add_(whole, list(parts))
    return [None] * len(parts)


@dataclass(frozen=True)
class _Slice:
    """The first ``width`` filters of a weight, and the buffer for their gradient (None: returned to autograd)."""

    weight: Tensor
    width: int
    buffer: GradientBuffer | None


def _slices(weights: Sequence[Tensor], widths: Sequence[int], x: Tensor) -> list[Tensor]:
    """The slices of the weights for the input ``x``, in its type."""
    return [weight[:width, : x.shape[1]].to(x.dtype) for weight, width in zip(weights, widths, strict=True)]


def _fused(x: Tensor, stride: int, slices: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights of the actual convolutions: the concatenated slices, or each slice."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // stride**2
    small = sum(part.numel() for part in slices) <= FUSE_UP_TO_VALUES
    if len(slices) > 1 and (pixels >= FUSE_FROM_PIXELS or small or x.is_cuda):
        return [torch.cat(list(slices))]
    return slices


def _input_gradient(x: Tensor, gradient: Tensor, slices: Sequence[Tensor], stride: int, padding: int) -> Tensor:
    """The gradient with respect to the input ``x``, of which only shape and type are used."""
    kernels = _fused(x, stride, slices)
    parts = gradient.split_with_sizes([kernel.shape[0] for kernel in kernels], dim=1)
    total = None
    for part, kernel in zip(parts, kernels, strict=True):
        found, _ = _convolution_backward(part, x, kernel, stride, padding, [True, False])
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _weight_gradients(
    x: Tensor, gradient: Tensor, targets: Sequence[_Slice], stride: int, padding: int
) -> list[Tensor | None]:
    """The gradients of all weights; None for those that were added to a buffer."""
    widths, kernel = [target.width for target in targets], targets[0].weight.shape[2:]
    if x.device.type == "cpu":
        columns = _unfold(x, kernel[-1], stride, padding, gradient.shape[-2:])
        rows = gradient.transpose(0, 1).reshape(gradient.shape[1], -1)
        return [
            _add_product(target, part, columns)
            for target, part in zip(targets, rows.split_with_sizes(widths), strict=True)
        ]
    shape = (sum(widths), x.shape[1], *kernel)
    _, found = _convolution_backward(gradient, x, x.new_empty(1).expand(shape), stride, padding, [False, True])
    return [_add(target, part) for target, part in zip(targets, found.split_with_sizes(widths), strict=True)]


def _add_product(target: _Slice, rows: Tensor, columns: Tensor) -> Tensor | None:
    """:func:`_add` for the product of (width, P) and (P, C * k * k), without a temporary tensor if possible."""
    weight = target.weight
    if target.buffer is not None and weight.is_contiguous():
        total = target.buffer.accumulator(weight)
        part = total.view(len(total), -1)[: len(rows), : columns.shape[1]]
        if total.dtype == rows.dtype:
            part.addmm_(rows, columns)
        else:
            part += rows @ columns
        return None
    channels = columns.shape[1] // weight[0, 0].numel()
    return _add(target, (rows @ columns).view(len(rows), channels, *weight.shape[2:]))


def _add(target: _Slice, gradient: Tensor) -> Tensor | None:
    """Add the gradient of a slice to the weight's buffer; without one, return the gradient of the whole weight."""
    width, channels = gradient.shape[:2]
    if target.buffer is not None:
        target.buffer.accumulator(target.weight)[:width, :channels].add_(gradient)
        return None
    whole = torch.zeros_like(target.weight)
    whole[:width, :channels] = gradient
    return whole


def _unfold(x: Tensor, side: int, stride: int, padding: int, size: torch.Size) -> Tensor:
    """(N * H * W, C * side * side): the inputs of the convolution for every pixel of its output, ``size`` (H, W)."""
    padded = F.pad(x, (padding, padding, padding, padding)).contiguous()
    image, channel, row, column = padded.stride()
    windows = padded.as_strided(
        (x.shape[1], side, side, x.shape[0], *size),
        (channel, row, column, image, row * stride, column * stride),
    )
    return windows.reshape(x.shape[1] * side * side, -1).t()


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight, those that are ``wanted``."""
    to_input, to_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return to_input, to_weight
