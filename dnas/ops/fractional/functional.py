"""The fractional-dilation convolution as a function: argument checks and choice of the method."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dnas.errors import UserError
from dnas.ops.fractional.custom_op import checked_rate, fractional_conv2d_op
from dnas.ops.fractional.exportable import gather_conv2d
from dnas.ops.fractional.reference import deformable_conv2d

Method = Literal["exact", "deformable"]


def fractional_conv2d(
    input: Tensor,
    weight: Tensor,
    dilation: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    groups: int = 1,
    method: Method = "exact",
) -> Tensor:
    """Convolve (N, C, H, W) with ``weight`` (O, C / groups, k, k), k odd, at the real dilation rate ``dilation``.

    Returns (N, O, ceil(H / stride), ceil(W / stride)). At an integer rate this equals ``F.conv2d`` with padding
    ``dilation * (k // 2)``. At a fractional rate, tap i of a row or column samples at the offset i times the rate, by
    linear interpolation between the two neighbouring pixels. This is the deformable convolution of RegSeg (v3, section
    3.4) with the same sampling offsets at every position. For k = 3 and r = n + f it equals the sum of four
    convolutions with dilations (n, n), (n, n + 1), (n + 1, n), (n + 1, n + 1), weighted by (1 - f)^2, f (1 - f),
    f (1 - f), f^2.

    ``dilation`` is a tensor with one element, at least 1. At an integer rate, where the interpolation has a kink, its
    gradient is that of ``deform_conv2d``: the left derivative for taps before the centre (above, left), the right
    derivative for taps after it (below, right).

    ``method`` is "exact" (fast, with bounded memory; saves only its arguments for the backward pass) or "deformable"
    (torchvision's operator, the reference). On CUDA devices with Triton installed, the exact method runs a fused
    kernel. There an invalid rate that is stored on the device gives NaN instead of an error, because checking it would
    synchronise host and device.

    Under autocast the convolution runs in autocast's dtype; the rate keeps its own. Half-precision inputs are
    interpolated in float32. Raises :class:`UserError` for a rate that is below 1 or not finite, an even kernel size,
    mismatched shapes and an unknown method.
    """
    _check_arguments(input, weight, dilation, bias, stride, groups, method)
    if method == "deformable":
        if not (torch.compiler.is_compiling() or dilation.is_meta):
            checked_rate(dilation)
        return deformable_conv2d(input, weight, dilation, bias, stride)
    input, weight, bias = _autocast(input, weight, bias)
    if torch.compiler.is_exporting():
        # Exported files must not depend on this library's custom operator.
        return gather_conv2d(input, weight, dilation, bias, stride, groups)
    result: Tensor = fractional_conv2d_op(input, weight, dilation, bias, stride, groups)
    return result


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast the arguments as autocast casts those of a convolution."""
    device = input.device.type
    if device == "meta" or input.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check_arguments(
    input: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int, method: str
) -> None:
    """Raise :class:`UserError` for invalid arguments.

    The value of the rate is not checked here: it may be on a device or not known yet.
    """
    if method not in get_args(Method):
        raise UserError(f"unknown method {method!r}, expected one of {', '.join(get_args(Method))}")
    if not isinstance(dilation, Tensor) or dilation.numel() != 1 or not dilation.is_floating_point():
        given = tuple(dilation.shape) if isinstance(dilation, Tensor) else repr(dilation)
        raise UserError(f"dilation rate {given}: expected a floating-point tensor with one element")
    if input.dim() != 4 or weight.dim() != 4:
        raise UserError(
            f"input {tuple(input.shape)} and weight {tuple(weight.shape)}: "
            "expected (N, C, H, W) and (O, C / groups, kernel, kernel)"
        )
    if weight.shape[2] != weight.shape[3] or weight.shape[3] % 2 == 0:
        raise UserError(f"kernel {weight.shape[2]}x{weight.shape[3]}: expected a square kernel of odd size")
    if stride < 1 or groups < 1:
        raise UserError(f"stride {stride} and groups {groups}: expected integers of at least 1")
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise UserError(
            f"input with {input.shape[1]} channels and weight {tuple(weight.shape)} do not match groups={groups}: "
            f"expected {weight.shape[1] * groups} input channels and output channels divisible by {groups}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UserError(f"bias {tuple(bias.shape)}: expected ({weight.shape[0]},), one value per output channel")
