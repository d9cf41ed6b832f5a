"""Launches the kernels of :mod:`dnas.ops.fractional.triton_kernels`. Triton is imported on the first call only."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from dnas.ops.fractional.outputs import Gradients, empty_like_input, output_size

#: Output positions per program.
BLOCK_POSITIONS = 128
#: The number of programs that the weight gradient is split into, if there are enough positions.
_TARGET_PROGRAMS = 2048
# Triton's default of 3 stages buffers several blocks of operands. In float32, with blocks of 64 channels (group widths
# of 33 and more), that takes 320 to 416 KB of shared memory, but an H100 has 227 KB per program. One stage takes 9 to
# 96 KB for blocks of 16 to 64 channels. Eight warps instead of 4 halve the accumulator's registers per thread.
NUM_WARPS = 8
NUM_STAGES = 1


class KernelDoesNotFitError(Exception):
    """The device has not enough shared memory or registers for a kernel; nothing was launched."""


def is_triton_supported(x: Tensor) -> bool:
    """Whether the kernels support ``x``: on a CUDA device with Triton installed, in float32 or half precision."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return x.is_cuda and x.dtype in dtypes and importlib.util.find_spec("triton") is not None


def triton_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, rate: Tensor, stride: int, groups: int) -> Tensor:
    """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)) in the memory format of ``x``.

    ``rate`` is a scalar on the device of ``x`` and is read there. If it is below 1 or not finite, the result is NaN: an
    error would require a synchronisation at every call.
    """
    out = empty_like_input(x, weight.shape[0], output_size(x, stride))
    _convolve(x, weight, out, rate, stride, groups, transposed=False)
    if bias is not None:
        out += bias[:, None, None]
    return out


def triton_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: Tensor,
    stride: int,
    groups: int,
    *,
    needs_input: bool = True,
    needs_rate: bool = True,
) -> Gradients:
    """The gradients of input, weight and rate; NaN for an invalid rate."""
    grad_x = None
    if needs_input:
        grad_x = empty_like_input(x, x.shape[1], (x.shape[2], x.shape[3]))
        _convolve(grad_output, weight, grad_x, rate, stride, groups, transposed=True)
    grad_weight, grad_rate = _weight_and_rate_gradients(
        grad_output, x, weight, rate, stride, groups, needs_rate=needs_rate
    )
    return Gradients(grad_x, grad_weight, grad_rate)


def _block_sizes(in_channels: int, out_channels: int, x: Tensor) -> tuple[int, int]:
    """Channels per program: 1 for depthwise convolutions, else powers of two that ``tl.dot`` accepts, 16 to 64.

    At most 32 for exact float32: its products are made without matrix instructions, and larger blocks spill kilobytes
    of registers.
    """
    if in_channels == out_channels == 1:
        return 1, 1
    most = 32 if x.dtype == torch.float32 and _dot_precision(x) == "ieee" else 64
    in_block, out_block = (min(most, max(16, _next_power_of_two(width))) for width in (in_channels, out_channels))
    return in_block, out_block


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _dot_precision(x: Tensor) -> str:
    """TF32 for products in float32 where PyTorch allows it for cuDNN convolutions."""
    return "tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee"


def _convolve(
    source: Tensor, weight: Tensor, result: Tensor, rate: Tensor, stride: int, groups: int, *, transposed: bool
) -> None:
    from dnas.ops.fractional.triton_kernels import convolution_kernel

    weight = weight.contiguous()
    out_channels, in_channels = weight.shape[0] // groups, weight.shape[1]
    taps = weight.shape[-1] ** 2
    strides = (in_channels * out_channels * taps, taps, in_channels * taps)  # of a group, an input and output channel
    if transposed:
        in_channels, out_channels = out_channels, in_channels
        strides = (strides[0], strides[2], strides[1])
    block_in, block_out = _block_sizes(in_channels, out_channels, source)
    positions = result.shape[-2] * result.shape[-1]
    grid = (_ceil_div(positions, BLOCK_POSITIONS), result.shape[0] * groups, _ceil_div(out_channels, block_out))
    _launch(
        convolution_kernel,
        grid,
        source,
        weight.to(source.dtype),
        result,
        rate.to(torch.float32),
        source.shape[-2],
        source.shape[-1],
        result.shape[-1],
        positions,
        groups,
        in_channels,
        out_channels,
        stride,
        *source.stride(),
        *result.stride(),
        *strides,
        KERNEL_SIZE=weight.shape[-1],
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        TRANSPOSED=transposed,
        PRECISION=_dot_precision(source),
    )


def _weight_and_rate_gradients(
    grad_output: Tensor, x: Tensor, weight: Tensor, rate: Tensor, stride: int, groups: int, *, needs_rate: bool
) -> tuple[Tensor, Tensor | None]:
    from dnas.ops.fractional.triton_kernels import weight_gradient_kernel

    weight = weight.contiguous()
    out_channels, in_channels = weight.shape[0] // groups, weight.shape[1]
    block_in, block_out = _block_sizes(in_channels, out_channels, x)
    positions = grad_output.shape[-2] * grad_output.shape[-1]
    blocks = _ceil_div(positions, BLOCK_POSITIONS) * x.shape[0]
    programs = (weight.shape[-1] ** 2 * _ceil_div(in_channels, block_in), groups * _ceil_div(out_channels, block_out))
    splits = max(1, min(blocks, _TARGET_PROGRAMS // (programs[0] * programs[1])))
    blocks_per_split = _ceil_div(blocks, splits)
    splits = _ceil_div(blocks, blocks_per_split)
    partial_grad_weight = torch.empty((splits, *weight.shape), dtype=torch.float32, device=x.device)
    partial_grad_rate = torch.empty(splits * programs[0] * programs[1], dtype=torch.float32, device=x.device)
    _launch(
        weight_gradient_kernel,
        (*programs, splits),
        x,
        grad_output,
        weight,
        partial_grad_weight,
        partial_grad_rate,
        rate.to(torch.float32),
        x.shape[-2],
        x.shape[-1],
        grad_output.shape[-1],
        positions,
        x.shape[0],
        groups,
        in_channels,
        out_channels,
        stride,
        blocks_per_split,
        *x.stride(),
        *grad_output.stride(),
        KERNEL_SIZE=weight.shape[-1],
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        NEEDS_RATE=needs_rate,
        PRECISION=_dot_precision(x),
    )
    return partial_grad_weight.sum(0).to(weight.dtype), partial_grad_rate.sum() if needs_rate else None


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch ``kernel`` on the device of its first argument, a tensor.

    Raises :class:`KernelDoesNotFitError` if the kernel needs more than the device has.
    """
    from triton.runtime.errors import OutOfResources

    device = args[0].device
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[grid](*args, num_warps=NUM_WARPS, num_stages=NUM_STAGES, **constants)
    except OutOfResources as error:
        raise KernelDoesNotFitError(str(error)) from None
