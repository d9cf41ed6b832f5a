"""Convolutions by the leading blocks of larger weights, which is what superkernels are made of.

Written out, ``F.conv2d(x, weight[:width, :channels])``, a narrow pass costs as much memory traffic as a wide one: the
gradient of the block is filled up with zeros to the size of the whole weight before it is added. Here the block's
gradient is added where it belongs. On CPUs it is moreover a matrix product over columns, which on the small maps of
the coarse scales takes a seventh of the time of the library's convolution, goes straight into the gradient that is
there, and shares the columns among several convolutions of one map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dnas.ops.turns import expect_gradient, in_turn

JOIN_FROM_PIXELS = 400
"""On CPUs convolutions of one map run as one from so many pixels on; below, copying large weights side by side costs
more than it saves."""
JOIN_UP_TO_VALUES = 1_200_000
"""Together so many values of weights are not too large to be copied."""


_MEMORY = "_gradient_memory"


class GradientMemory:
    """Where backward passes gather the gradient of a weight, instead of in ``weight.grad``.

    tensor: what gradients are added to, of the weight's shape; None is zeros that are made when needed. It may be of a
    lower precision than the weight. What it begins with is up to its owner, who takes the gradient from it: zeros, or
    a momentum that has decayed, which thereby becomes the new one without memory for a gradient of its own.
    filled: whether anything was added since the owner set it to False.
    """

    def __init__(self, weight: Tensor, tensor: Tensor | None = None, precision: torch.dtype | None = None) -> None:
        """For ``weight``, until :func:`forget_memory`; one of ``precision`` is made if needed, without ``tensor``."""
        self.weight, self.tensor, self.filled = weight, tensor, False
        self._precision = weight.dtype if precision is None else precision
        setattr(weight, _MEMORY, self)

    @torch.no_grad()
    def take(self) -> Tensor:
        """The tensor to add a gradient to."""
        if self.tensor is None:
            self.tensor = torch.zeros_like(self.weight, dtype=self._precision)
        self.filled = True
        return self.tensor


def forget_memory(weights: Iterable[Tensor]) -> None:
    """Gather the gradients in ``weight.grad`` again."""
    for weight in weights:
        if hasattr(weight, _MEMORY):
            delattr(weight, _MEMORY)


def joint_conv2d(x: Tensor, weights: Sequence[Tensor], stride: int = 1, widths: Sequence[int] | None = None) -> Tensor:
    """Convolutions of (N, C, H, W) by blocks of the weights, side by side: (N, sum of widths, H', W'), "same" padding.

    A block is what a weight (O, I, k, k) has for the first C of its I channels and the first of its O filters, as many
    as ``widths`` says, by default all.

    The backward pass adds to ``weight.grad``, or the weight's :class:`GradientMemory`, itself where a weight is a leaf:
    ``torch.autograd.grad`` towards such a weight says that it was not used. Under autocast it computes, and returns,
    the lower precision.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(kind))
    chosen = [weight.shape[0] for weight in weights] if widths is None else list(widths)
    result: Tensor = _JointConv.apply(x, stride, chosen, *weights)
    return result


class _JointConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, widths: list[int], *weights: Tensor) -> Tensor:
        # The weights as they are, not as a recomputation would hand them back: gradients are added to theirs.
        ctx.weights, ctx.widths, ctx.stride, ctx.size = weights, widths, stride, x.shape
        # Only the gradients of the weights read the input: without them it need not be kept.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[3:]) else None)
        for weight, wanted in zip(weights, ctx.needs_input_grad[3:], strict=True):
            if wanted and weight.is_leaf:
                expect_gradient(weight)
        padding = weights[0].shape[-1] // 2
        groups = _groups(x, stride, _blocks(weights, widths, x))
        outputs = [F.conv2d(x, group, None, stride, padding) for group in groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weights = ctx.saved_tensors, ctx.weights
        stride, padding = ctx.stride, weights[0].shape[-1] // 2
        to_input = None
        if ctx.needs_input_grad[0]:
            blank = gradient.new_empty(ctx.size) if x is None else x  # its values do not matter
            to_input = _towards_input(blank, gradient, _blocks(weights, ctx.widths, blank), stride, padding)
        to_weights: list[Tensor | None] = [None] * len(weights)
        if wanted := [index for index, want in enumerate(ctx.needs_input_grad[3:]) if want]:
            parts = gradient.split_with_sizes(ctx.widths, dim=1)
            gradient = gradient if len(wanted) == len(weights) else torch.cat([parts[i] for i in wanted], dim=1)
            chosen, widths = [weights[i] for i in wanted], [ctx.widths[i] for i in wanted]
            found = _towards_weights(x, gradient, chosen, widths, stride, padding)
            for index, of_weight in zip(wanted, found, strict=True):
                to_weights[index] = of_weight
        return to_input, None, None, *to_weights


def _blocks(weights: Sequence[Tensor], widths: Sequence[int], x: Tensor) -> list[Tensor]:
    """The blocks that ``x`` is convolved by, of its kind."""
    return [weight[:width, : x.shape[1]].to(x.dtype) for weight, width in zip(weights, widths, strict=True)]


def _groups(x: Tensor, stride: int, blocks: Sequence[Tensor]) -> Sequence[Tensor]:
    """The blocks as they are convolved by: side by side, or one by one."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // stride**2
    small = sum(block.numel() for block in blocks) <= JOIN_UP_TO_VALUES
    if len(blocks) > 1 and (pixels >= JOIN_FROM_PIXELS or small or x.is_cuda):
        return [torch.cat(list(blocks))]
    return blocks


def _towards_input(x: Tensor, gradient: Tensor, blocks: Sequence[Tensor], stride: int, padding: int) -> Tensor:
    """The gradient of the input ``x``, of which only the shape counts."""
    groups = _groups(x, stride, blocks)
    parts = gradient.split_with_sizes([group.shape[0] for group in groups], dim=1)
    total = None
    for part, group in zip(parts, groups, strict=True):
        found = _convolution_backward(part, x, group, stride, padding, to_weight=False)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _towards_weights(
    x: Tensor, gradient: Tensor, weights: Sequence[Tensor], widths: list[int], stride: int, padding: int
) -> list[Tensor | None]:
    """The gradients of all weights; None for leaves, which have it already."""
    if x.device.type == "cpu":
        columns = _columns(x, weights[0].shape[-1], stride, padding, gradient.shape[-2:])
        rows = gradient.transpose(0, 1).reshape(gradient.shape[1], -1)
        return [
            _gather_product(weight, part, columns)
            for weight, part in zip(weights, rows.split_with_sizes(widths), strict=True)
        ]
    shape = (sum(widths), x.shape[1], *weights[0].shape[2:])
    found = _convolution_backward(gradient, x, x.new_empty(1).expand(shape), stride, padding, to_weight=True)
    return [_gather(weight, part) for weight, part in zip(weights, found.split_with_sizes(widths), strict=True)]


def _gather_product(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor | None:
    """:func:`_gather` of the product of (width, P) and (P, C * k * k), without a detour where possible."""
    if weight.is_leaf and weight.is_contiguous():
        with in_turn(weight):
            held = _gradient_of(weight)
            block = held.view(len(held), -1)[: len(rows), : columns.shape[1]]
            if held.dtype == rows.dtype:
                block.addmm_(rows, columns)
            else:
                block += rows @ columns
        return None
    channels = columns.shape[1] // weight[0, 0].numel()
    return _gather(weight, (rows @ columns).view(len(rows), channels, *weight.shape[2:]))


def _gather(weight: Tensor, gradient: Tensor) -> Tensor | None:
    """Add the gradient of a leading block to that of the weight; of a computed weight, return the whole."""
    width, channels = gradient.shape[:2]
    if weight.is_leaf:
        with in_turn(weight):
            _gradient_of(weight)[:width, :channels] += gradient
        return None
    whole = torch.zeros_like(weight)
    whole[:width, :channels] = gradient
    return whole


def _gradient_of(weight: Tensor) -> Tensor:
    """What the gradients of the weight are added to."""
    memory: GradientMemory | None = getattr(weight, _MEMORY, None)
    if memory is not None:
        return memory.take()
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


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
