"""A cache of resized images, shared between a process and its forked workers."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch

from dnas.errors import UserError


class PixelCache:
    """Images uint8 (3, H, W) and masks uint8 (H, W) by index, stored when they are first read.

    The memory is an anonymous shared mapping: workers that are forked later read and write the same pages, and its size
    is not limited by ``/dev/shm``, which is small in containers. Unpickling (for spawned workers) gives an empty cache.
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self._count, self._size = count, size
        height, width = size
        pixels = height * width
        try:
            memory = mmap.mmap(-1, count * (4 * pixels + 1))
        except (OSError, OverflowError, ValueError):
            gigabytes = count * 4 * pixels / 2**30
            raise UserError(f"cache: {count} images need {gigabytes:.1f} GB of memory; set cache: false") from None
        buffer = np.frombuffer(memory, np.uint8)
        self._planes = torch.from_numpy(buffer[: count * 4 * pixels]).view(count, 4, height, width)
        self._filled = torch.from_numpy(buffer[count * 4 * pixels :])

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelCache, (self._count, self._size)

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Copies of image and mask ``index``, or None if they are not cached."""
        if not self._filled[index]:
            return None
        planes = self._planes[index].clone()
        return planes[:3], planes[3]

    def put(self, index: int, image: torch.Tensor, mask: torch.Tensor) -> None:
        """Store image and mask ``index``; the flag is set last, so that no process reads an incomplete image."""
        self._planes[index, :3] = image
        self._planes[index, 3] = mask
        self._filled[index] = 1
