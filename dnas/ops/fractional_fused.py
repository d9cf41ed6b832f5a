"""Launches the Triton kernels of :mod:`dnas.ops.fractional_kernels`; imports Triton only when it is called."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from dnas.ops.fractional_parts import memory_format_of
from dnas.ops.fractional_separable import Gradients

#: Positions that one program works on.
_POSITIONS = 128
#: The programs that the weight gradient is split into, if there are enough positions.
_PROGRAMS = 2048


def can_fuse(x: Tensor) -> bool:
    """Whether the kernels serve this tensor: on a CUDA device with Triton, in float32 or half precision."""
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return x.is_cuda and x.dtype in kinds and importlib.util.find_spec("triton") is not None


def convolve_fused(x: Tensor, weight: Tensor, bias: Tensor | None, rate: Tensor, stride: int, groups: int) -> Tensor:
    """(N, C, H, W) -> (N, O, ceil(H / stride), ceil(W / stride)) in the memory format of ``x``.

    ``rate`` is a scalar on the device of ``x`` and is read there. If it is below 1 or not finite, the result is NaN:
    to raise an error, the host would have to wait for the device at every call.
    """
    height, width = x.shape[-2:]
    out = _like(x, weight.shape[0], (-(-height // stride), -(-width // stride)))
    _contract(x, weight, out, rate, stride, groups, transposed=False)
    if bias is not None:
        out += bias[:, None, None]
    return out


def gradients_fused(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    rate: Tensor,
    stride: int,
    groups: int,
    *,
    of_input: bool = True,
    of_rate: bool = True,
) -> Gradients:
    """The gradients for the output's gradient ``grad``; NaN for a bad rate."""
    grad_x = None
    if of_input:
        grad_x = _like(x, x.shape[1], (x.shape[2], x.shape[3]))
        _contract(grad, weight, grad_x, rate, stride, groups, transposed=True)
    grad_weight, grad_rate = _weight_and_rate(grad, x, weight, rate, stride, groups, of_rate=of_rate)
    return Gradients(grad_x, grad_weight, grad_rate)


def _like(x: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.empty((x.shape[0], channels, *size), dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def _block(width: int) -> int:
    """The channels that a program works on: 1 where there is 1, else what a matrix product needs, 16 to 64."""
    return 1 if width == 1 else min(64, max(16, 1 << (width - 1).bit_length()))


def _blocks(in_width: int, out_width: int) -> tuple[int, int]:
    """Blocks of the two widths; without a matrix product only if both are 1."""
    if in_width == out_width == 1:
        return 1, 1
    return max(16, _block(in_width)), max(16, _block(out_width))


def _precision(x: Tensor) -> str:
    """As cuDNN does: float32 products in TF32 where the user allows that for convolutions."""
    return "tf32" if torch.backends.cudnn.allow_tf32 and x.is_cuda else "ieee"


def _contract(
    source: Tensor, weight: Tensor, result: Tensor, rate: Tensor, stride: int, groups: int, *, transposed: bool
) -> None:
    from dnas.ops.fractional_kernels import contract_kernel

    weight = weight.contiguous()
    out_width, in_width = weight.shape[0] // groups, weight.shape[1]
    taps = weight.shape[-1] ** 2
    strides = (in_width * out_width * taps, taps, in_width * taps)  # of a group, an input and an output channel
    if transposed:
        in_width, out_width = out_width, in_width
        strides = (strides[0], strides[2], strides[1])
    block_in, block_out = _blocks(in_width, out_width)
    positions = result.shape[-2] * result.shape[-1]
    grid = (_ceil(positions, _POSITIONS), result.shape[0] * groups, _ceil(out_width, block_out))
    _launch(contract_kernel, grid, source)(
        source,
        weight.to(source.dtype),
        result,
        rate.to(torch.float32),
        source.shape[-2],
        source.shape[-1],
        result.shape[-1],
        positions,
        groups,
        in_width,
        out_width,
        stride,
        *source.stride(),
        *result.stride(),
        *strides,
        KERNEL=weight.shape[-1],
        BLOCK_POSITIONS=_POSITIONS,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        TRANSPOSED=transposed,
        PRECISION=_precision(source),
    )


def _weight_and_rate(
    grad: Tensor, x: Tensor, weight: Tensor, rate: Tensor, stride: int, groups: int, *, of_rate: bool
) -> tuple[Tensor, Tensor | None]:
    from dnas.ops.fractional_kernels import weight_kernel

    weight = weight.contiguous()
    out_width, in_width = weight.shape[0] // groups, weight.shape[1]
    block_in, block_out = _blocks(in_width, out_width)
    positions = grad.shape[-2] * grad.shape[-1]
    blocks = _ceil(positions, _POSITIONS) * x.shape[0]
    programs = (weight.shape[-1] ** 2 * _ceil(in_width, block_in), groups * _ceil(out_width, block_out))
    splits = max(1, min(blocks, _PROGRAMS // (programs[0] * programs[1])))
    per_split = _ceil(blocks, splits)
    splits = _ceil(blocks, per_split)
    partial = torch.empty((splits, *weight.shape), dtype=torch.float32, device=x.device)
    shares = torch.empty(splits * programs[0] * programs[1], dtype=torch.float32, device=x.device)
    _launch(weight_kernel, (*programs, splits), x)(
        x,
        grad,
        weight,
        partial,
        shares,
        rate.to(torch.float32),
        x.shape[-2],
        x.shape[-1],
        grad.shape[-1],
        positions,
        x.shape[0],
        groups,
        in_width,
        out_width,
        stride,
        per_split,
        *x.stride(),
        *grad.stride(),
        KERNEL=weight.shape[-1],
        BLOCK_POSITIONS=_POSITIONS,
        BLOCK_IN=block_in,
        BLOCK_OUT=block_out,
        OF_RATE=of_rate,
        PRECISION=_precision(x),
    )
    return partial.sum(0).to(weight.dtype), shares.sum() if of_rate else None


def _ceil(value: int, step: int) -> int:
    return -(-value // step)


class _Launcher:
    """A kernel bound to a grid, launched on the device of a tensor."""

    def __init__(self, kernel: Any, grid: tuple[int, ...], device: torch.device) -> None:
        self.kernel, self.grid, self.device = kernel, grid, device

    def __call__(self, *args: Any, **constants: Any) -> None:
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                self.kernel[self.grid](*args, **constants)
        else:
            self.kernel[self.grid](*args, **constants)


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor) -> _Launcher:
    return _Launcher(kernel, grid, x.device)
