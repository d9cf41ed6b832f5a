"""The fractional-dilation convolution as an operator of PyTorch, ``dnas::fractional_conv2d``, with its gradient.

Being one operator, it is opaque to torch.compile (no graph break), has a shape on the meta device, and is counted as
one convolution by PyTorch's operation counter. Only input, weight and rate are saved for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dnas.errors import UserError
from dnas.ops.fractional_fused import can_fuse, convolve_fused, gradients_fused
from dnas.ops.fractional_parts import memory_format_of
from dnas.ops.fractional_separable import Gradients, convolve, gradients


def checked_rate(dilation: Tensor) -> float:
    """The rate as a number; raises :class:`UserError` unless it is finite and at least 1."""
    rate = float(dilation.item())
    if not math.isfinite(rate) or rate < 1:
        raise UserError(f"dilation rate {rate:g}: expected a finite rate of at least 1; keep it there, or lower its lr")
    return rate


@torch.library.custom_op("dnas::fractional_conv2d", mutates_args=())
def fractional_operator(
    x: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int
) -> Tensor:
    """The output, in the memory format of ``x``; the arguments have been checked, except for the rate's value."""
    if can_fuse(x):
        return convolve_fused(x, weight, bias, _scalar_on(x, dilation), stride, groups)
    rate = checked_rate(dilation)
    if rate.is_integer():
        whole = int(rate)
        out = F.conv2d(x, weight, bias, stride, whole * (weight.shape[-1] // 2), whole, groups)
    else:
        out = convolve(x, weight, bias, rate, stride, groups)
    return out.contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("dnas::fractional_conv2d_backward", mutates_args=())
def fractional_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: Tensor, stride: int, groups: int, of_input: bool, of_rate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and rate; empty tensors for those that are not asked for."""
    if can_fuse(x):
        scalar = _scalar_on(x, dilation)
        found = gradients_fused(grad, x, weight, scalar, stride, groups, of_input=of_input, of_rate=of_rate)
    else:
        rate = checked_rate(dilation)
        found = _exact_gradients(grad, x, weight, rate, stride, groups, of_input=of_input, of_rate=of_rate)
    grad_x = x.new_empty(0) if found.x is None else found.x.contiguous(memory_format=memory_format_of(x))
    if found.rate is None:
        return grad_x, found.weight, dilation.new_empty(0)
    return grad_x, found.weight, found.rate.to(dilation).reshape(dilation.shape)


def _exact_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, rate: float, stride: int, groups: int, *, of_input: bool, of_rate: bool
) -> Gradients:
    """Of an integer convolution where that is all there is to it, else of the taps' maps."""
    if of_rate or not rate.is_integer():
        return gradients(grad, x, weight, rate, stride, groups, of_input=of_input, of_rate=of_rate)
    whole = int(rate)
    padding = [whole * (weight.shape[-1] // 2)] * 2
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [whole] * 2, False, [0, 0], groups, [of_input, True, False]
    )
    return Gradients(grad_x, grad_weight, None)


def _scalar_on(x: Tensor, dilation: Tensor) -> Tensor:
    """The rate on the device of ``x``. One that lies elsewhere can be checked without waiting for the device."""
    if not dilation.is_cuda:
        checked_rate(dilation)
    return dilation.to(x.device)


@fractional_operator.register_fake
def _shape(x: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    size = (x.shape[0], weight.shape[0], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@fractional_backward.register_fake
def _gradient_shapes(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: Tensor, stride: int, groups: int, of_input: bool, of_rate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    return (
        grad_x if of_input else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(dilation) if of_rate else dilation.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, dilation, _bias, ctx.stride, ctx.groups = inputs
    ctx.save_for_backward(x, weight, dilation)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, dilation = ctx.saved_tensors
    of_x, of_weight, of_rate, of_bias = ctx.needs_input_grad[:4]
    grad_x = grad_weight = grad_rate = None
    if of_x or of_weight or of_rate:
        grad_x, grad_weight, grad_rate = fractional_backward(
            grad, x, weight, dilation, ctx.stride, ctx.groups, of_x, of_rate
        )
    return (
        grad_x if of_x else None,
        grad_weight if of_weight else None,
        grad_rate if of_rate else None,
        grad.sum((0, 2, 3)) if of_bias else None,
        None,
        None,
    )


fractional_operator.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.dnas.fractional_conv2d)
def _operations(
    x_shape: torch.Size, weight_shape: torch.Size, *_args: Any, out_shape: torch.Size, **_kwargs: Any
) -> int:
    """Operations, two a multiply-add, as of an integer convolution: interpolation is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])
