"""Tensors in memory that this process shares with its forks."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

ALONE_FROM_BYTES = 1 << 16
"""Tensors of so many bytes have a mapping of their own, smaller ones have one together."""
ALIGNMENT = 64


def share(tensors: Iterable[Tensor]) -> None:
    """Move the values of CPU tensors into memory that forks made from here on share with this process."""
    small = []
    for tensor in tensors:
        if tensor.nbytes >= ALONE_FROM_BYTES:
            tensor.data = shared_like(tensor).copy_(tensor.detach())
        elif tensor.numel():
            small.append(tensor)
    ends = list(itertools.accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in small))
    if small:
        mapping = mmap.mmap(-1, ends[-1])
        for tensor, start in zip(small, [0, *ends], strict=False):
            tensor.data = _tensor(mapping, start, tensor, tensor.dtype).copy_(tensor.detach())


def shared_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of the shape and strides of a dense tensor. Pages that were never written to take no memory."""
    dtype = tensor.dtype if dtype is None else dtype
    return _tensor(mmap.mmap(-1, max(1, tensor.numel() * dtype.itemsize)), 0, tensor, dtype)


def return_free_memory() -> None:
    """Give back to the system what the C library keeps although it is free: a fork would come to own a copy."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _tensor(mapping: mmap.mmap, start: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """One with a storage of its own, which keeps the mapping: what a file would hold of it is no more than this."""
    values = torch.frombuffer(mapping, dtype=dtype, count=like.numel(), offset=start)
    return values.as_strided(like.shape, like.stride())
