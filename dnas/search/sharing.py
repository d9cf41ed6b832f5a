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
BYTES_BETWEEN_RETURNS = 1 << 26
_ALL_ARENAS = 4096


def share(tensors: Iterable[Tensor]) -> None:
    """Move the values of CPU tensors into memory that forks made from here on share with this process."""
    small, moved = [], 0
    for tensor in tensors:
        if tensor.nbytes >= ALONE_FROM_BYTES:
            tensor.data = shared_like(tensor).copy_(tensor.detach())
            moved += tensor.nbytes
            if moved >= BYTES_BETWEEN_RETURNS:  # lest there be two of all for a moment
                return_free_memory()
                moved = 0
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
    """Give back to the system what the C library, or jemalloc where it is preloaded, keeps although it is free.

    A fork would come to own a copy of it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):
        library.mallctl(f"arena.{_ALL_ARENAS}.purge".encode(), None, None, None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))


def _tensor(mapping: mmap.mmap, start: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """One with a storage of its own, which keeps the mapping: what a file would hold of it is no more than this."""
    values = torch.frombuffer(mapping, dtype=dtype, count=like.numel(), offset=start)
    return values.as_strided(like.shape, like.stride())
