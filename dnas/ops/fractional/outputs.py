"""Output sizes, memory formats and the gradient tuple that all implementations share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Gradients(NamedTuple):
    """Gradients of the input, the weight and the dilation rate (a scalar); None where not requested."""

    x: Tensor | None
    weight: Tensor
    rate: Tensor | None


def output_size(x: Tensor, stride: int) -> tuple[int, int]:
    """(H, W) of the output for the input (N, C, H, W) under "same" padding: ceil(H / stride), ceil(W / stride)."""
    return -(-x.shape[-2] // stride), -(-x.shape[-1] // stride)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """``channels_last`` for a tensor with that layout which is not also contiguous, else ``contiguous_format``."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def empty_like_input(x: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """An uninitialised tensor (N, channels, *size) with the dtype, device and memory format of ``x``."""
    shape = (x.shape[0], channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
