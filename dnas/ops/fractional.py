"""The fractional-dilation convolution: a convolution whose dilation rate is a real number, and has a gradient."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dnas.errors import UserError
from dnas.ops.fractional_operator import checked_rate, fractional_operator
from dnas.ops.fractional_reference import deformable, gathered

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
    """Convolve (N, C, H, W) with ``weight`` (O, C / groups, k, k), k odd, dilated by the real rate ``dilation``.

    Returns (N, O, ceil(H / stride), ceil(W / stride)), as ``F.conv2d`` with padding ``dilation * (k // 2)`` would for
    a whole rate, to which it is equal there. In between, tap i of a row or column reads at the distance i times the
    rate, interpolated linearly between its two neighbours: the deformable convolution of RegSeg (v3, section 3.4)
    with the same offsets everywhere. For k = 3 and r = n + f that is the sum of four convolutions of dilations
    (n, n), (n, n + 1), (n + 1, n), (n + 1, n + 1) with the factors (1 - f)^2, f (1 - f), f (1 - f), f^2.

    ``dilation`` is a scalar tensor, 1 or more. Its gradient at a whole rate, where the interpolation has a kink, is
    that of ``deform_conv2d``: taps before the centre (above, left) have the derivative from below, taps behind it
    (below, right) the one from above.

    ``method`` is "exact" (fast; its memory is bounded and only the arguments are kept for the backward pass) or
    "deformable" (torchvision's operator, the reference). On CUDA devices the exact method runs one fused kernel where
    Triton is installed; there a bad rate that lies on the device gives NaN, as raising an error would stall it.

    Under autocast, the convolution runs in autocast's type; the rate keeps its own. Half precision interpolates in
    float32. Raises :class:`UserError` for a rate below 1 or not finite, an even kernel, shapes that do not fit, and an
    unknown method.
    """
    _check(input, weight, dilation, bias, stride, groups, method)
    if method == "deformable":
        if not (torch.compiler.is_compiling() or dilation.is_meta):
            checked_rate(dilation)
        return deformable(input, weight, dilation, bias, stride)
    input, weight, bias = _autocast(input, weight, bias)
    if torch.compiler.is_exporting():
        # The operator is this library's own, and an exported file has to do without it.
        return gathered(input, weight, dilation, bias, stride, groups)
    result: Tensor = fractional_operator(input, weight, dilation, bias, stride, groups)
    return result


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does to the arguments of a convolution."""
    device = input.device.type
    if device == "meta" or input.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return input, weight, bias
    kind = torch.get_autocast_dtype(device)
    return input.to(kind), weight.to(kind), None if bias is None else bias.to(kind)


def _check(
    input: Tensor, weight: Tensor, dilation: Tensor, bias: Tensor | None, stride: int, groups: int, method: str
) -> None:
    """Raise :class:`UserError` for anything but a bad rate, whose value may be on a device or not yet known."""
    if method not in get_args(Method):
        raise UserError(f"unknown method {method!r}, expected one of {', '.join(get_args(Method))}")
    if not isinstance(dilation, Tensor) or dilation.numel() != 1 or not dilation.is_floating_point():
        given = tuple(dilation.shape) if isinstance(dilation, Tensor) else repr(dilation)
        raise UserError(f"dilation rate {given}: expected a floating-point tensor with a single value")
    if input.dim() != 4 or weight.dim() != 4:
        raise UserError(
            f"input {tuple(input.shape)} and weight {tuple(weight.shape)}: "
            "expected (N, C, H, W) and (O, C / groups, kernel, kernel)"
        )
    if weight.shape[2] != weight.shape[3] or weight.shape[3] % 2 == 0:
        raise UserError(f"kernel {weight.shape[2]}x{weight.shape[3]}: expected a square kernel of odd size")
    if stride < 1 or groups < 1:
        raise UserError(f"stride {stride} and groups {groups}: expected whole numbers of at least 1")
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise UserError(
            f"input of {input.shape[1]} channels and weight {tuple(weight.shape)} do not fit {groups} groups: expected "
            f"{weight.shape[1] * groups} input channels and output channels that {groups} divides"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UserError(f"bias {tuple(bias.shape)}: expected ({weight.shape[0]},), a value for each output channel")
