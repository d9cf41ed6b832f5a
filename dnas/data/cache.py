"""A cache of resized images, shared between a process and its forked workers."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch

from dnas.errors import UserError


class PixelCache:
    """Images uint8 (channels, H, W) and masks uint8 (H, W) by index, stored when they are first read.

    The memory is an anonymous shared mapping: workers that are forked later read and write the same pages, and its size
    is not limited by ``/dev/shm``, which is small in containers. Unpickling (for spawned workers) gives an empty cache.
    """

    def __init__(self, count: int, size: tuple[int, int], channels: int = 3) -> None:
        self._count, self._size, self._channels = count, size, channels
        height, width = size
        pixels, planes = height * width, channels + 1
        try:
            memory = mmap.mmap(-1, count * (planes * pixels + 1))
        except (OSError, OverflowError, ValueError):
            gigabytes = count * planes * pixels / 2**30
            raise UserError(f"cache: {count} images need {gigabytes:.1f} GB of memory; set cache: false") from None
        buffer = np.frombuffer(memory, np.uint8)
        self._planes = torch.from_numpy(buffer[: count * planes * pixels]).view(count, planes, height, width)
        self._filled = torch.from_numpy(buffer[count * planes * pixels :])

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelCache, (self._count, self._size, self._channels)

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Copies of image and mask ``index``, or None if they are not cached."""
        if not self._filled[index]:
            return None
        planes = self._planes[index].clone()
        return planes[:-1], planes[-1]

    def put(self, index: int, image: torch.Tensor, mask: torch.Tensor) -> None:
        """Store image and mask ``index``; the flag is set last, so that no process reads an incomplete image."""
        self._planes[index, :-1] = image
        self._planes[index, -1] = mask
        self._filled[index] = 1
