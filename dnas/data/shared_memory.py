"""Handing batches from workers to the process that trains, where shared memory is small.

Torch hands tensors over in ``/dev/shm``, of which a container has 64 MB by default; a worker that finds it full is
killed. Arrays of NumPy go through a pipe instead, which costs a copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

_FOLDER = "/dev/shm"
_WAITING = 4
"""Batches of each worker that may be in shared memory: two that are loaded ahead, one in use, one being written."""


def free_shared_memory() -> int | None:
    """Bytes free in the system's shared memory; None if it has no such folder, and no limit."""
    try:
        found = os.statvfs(_FOLDER)
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize


def handed_over(
    batch: tuple[torch.Tensor, ...], free: Callable[[], int | None] = free_shared_memory
) -> tuple[Any, ...]:
    """What a worker returns for a batch: its tensors if shared memory has room for those of all workers, else arrays.

    In the process that trains itself, the batch.
    """
    worker = get_worker_info()
    if worker is None:
        return batch
    needed = _WAITING * worker.num_workers * sum(tensor.nbytes for tensor in batch)
    available = free()
    if available is None or available >= needed:
        try:
            # The loader would do it later, in a thread whose errors are lost.
            return tuple(tensor.share_memory_() for tensor in batch)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):  # such as a limit on the size of files, which also holds there
            pass
    return tuple(tensor.numpy() for tensor in batch)


def received(batch: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    """The tensors of a batch that :func:`handed_over` returned."""
    return tuple(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in batch)
