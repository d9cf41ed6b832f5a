"""The PyTorch custom operator ``dnas::fractional_conv2d``: dispatch to an implementation, shape inference, autograd.

As a single operator it is opaque to ``torch.compile`` (no graph break), infers its shape on the meta device, and is
counted by PyTorch's FLOP counter as one convolution. Only input, weight and rate are saved for the backward pass.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dnas.errors import UserError
from dnas.ops.fractional.outputs import Gradients, empty_like_input, memory_format_of, output_size
from dnas.ops.fractional.separable import separable_conv2d, separable_gradients
from dnas.ops.fractional.triton_launch import (
    KernelDoesNotFitError,
    is_triton_supported,
    triton_conv2d,
    triton_gradients,
)


def checked_rate(dilation: Tensor) -> float:
    """The rate as a number; raises :class:`UserError` unless it is finite and at least 1."""
    rate = float(dilation.item())
    if not math.isfinite(rate) or rate < 1:
        raise UserError(
            f"dilation rate {rate:g}: expected a finite rate of at least 1; "
            "clamp it after each optimizer step or lower its learning rate"
        )
    return rate


@torch.library.custom_op("dnas::fractional_conv2d", mutates_args=())
def fractional_conv2d_op(
    x: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int
) -> Tensor:
    """The output, in the memory format of ``x``. The caller has checked all arguments but the value of the rate."""
    if is_triton_supported(x):
        try:
            return triton_conv2d(x, weight, bias, _rate_on_device_of(x, dilation), stride, groups)
        except KernelDoesNotFitError as error:
            _log_fallback(error)
    rate = checked_rate(dilation)
    if rate.is_integer():
        whole = int(rate)
        out = F.conv2d(x, weight, bias, stride, whole * (weight.shape[-1] // 2), whole, groups)
    else:
        out = separable_conv2d(x, weight, bias, rate, stride, groups)
    return out.contiguous(memory_format=memory_format_of(x))


@torch.library.custom_op("dnas::fractional_conv2d_backward", mutates_args=())
def fractional_conv2d_backward_op(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: Tensor,
    stride: int,
    groups: int,
    needs_input: bool,
    needs_rate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and rate; an empty tensor for each that is not needed."""
    needs = {"needs_input": needs_input, "needs_rate": needs_rate}
    gradients = None
    if is_triton_supported(x):
        try:
            rate_tensor = _rate_on_device_of(x, dilation)
            gradients = triton_gradients(grad_output, x, weight, rate_tensor, stride, groups, **needs)
        except KernelDoesNotFitError as error:
            _log_fallback(error)
    if gradients is None:
        gradients = _eager_gradients(grad_output, x, weight, checked_rate(dilation), stride, groups, **needs)
    grad_x = x.new_empty(0) if gradients.x is None else gradients.x.contiguous(memory_format=memory_format_of(x))
    if gradients.rate is None:
        return grad_x, gradients.weight, dilation.new_empty(0)
    return grad_x, gradients.weight, gradients.rate.to(dilation).reshape(dilation.shape)


def _log_fallback(error: KernelDoesNotFitError) -> None:
    logging.getLogger(__name__).debug("the separable form instead of the Triton kernel: %s", error)


def _eager_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: float,
    stride: int,
    groups: int,
    *,
    needs_input: bool,
    needs_rate: bool,
) -> Gradients:
    """By PyTorch's convolution for an integer rate without gradient, by the separable form otherwise."""
    if needs_rate or not rate.is_integer():
        return separable_gradients(
            grad_output, x, weight, rate, stride, groups, needs_input=needs_input, needs_rate=needs_rate
        )
    whole = int(rate)
    padding = [whole * (weight.shape[-1] // 2)] * 2
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output,
        x,
        weight,
        None,
        [stride] * 2,
        padding,
        [whole] * 2,
        False,
        [0, 0],
        groups,
        [needs_input, True, False],
    )
    return Gradients(grad_x, grad_weight, None)


def _rate_on_device_of(x: Tensor, dilation: Tensor) -> Tensor:
    """The rate on the device of ``x``. A rate on the CPU is checked first, which needs no synchronisation."""
    if not dilation.is_cuda:
        checked_rate(dilation)
    return dilation.to(x.device)


@fractional_conv2d_op.register_fake
def _infer_output(x: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    return empty_like_input(x, weight.shape[0], output_size(x, stride))


@fractional_conv2d_backward_op.register_fake
def _infer_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: Tensor,
    stride: int,
    groups: int,
    needs_input: bool,
    needs_rate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        empty_like_input(x, x.shape[1], (x.shape[2], x.shape[3])) if needs_input else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(dilation) if needs_rate else dilation.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, dilation, _bias, ctx.stride, ctx.groups = inputs
    ctx.save_for_backward(x, weight, dilation)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, dilation = ctx.saved_tensors
    needs_x, needs_weight, needs_rate, needs_bias = ctx.needs_input_grad[:4]
    grad_x = grad_weight = grad_rate = None
    if needs_x or needs_weight or needs_rate:
        grad_x, grad_weight, grad_rate = fractional_conv2d_backward_op(
            grad_output, x, weight, dilation, ctx.stride, ctx.groups, needs_x, needs_rate
        )
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad_rate if needs_rate else None,
        grad_output.sum((0, 2, 3)) if needs_bias else None,
        None,
        None,
    )


fractional_conv2d_op.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.dnas.fractional_conv2d)
def _count_flops(
    x_shape: torch.Size, weight_shape: torch.Size, *_args: Any, out_shape: torch.Size, **_kwargs: Any
) -> int:
    """FLOPs, two per multiply-add, of an integer convolution of this shape: interpolation is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])
