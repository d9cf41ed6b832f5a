"""The base class of all datasets, of files and generated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torchvision import tv_tensors

from dnas.data.cache import PixelCache
from dnas.data.disk_cache import DiskCache
from dnas.data.labels import Labels
from dnas.errors import UserError


class SegmentationDataset(ABC):
    """Images with a label for every pixel.

    ``dataset[i]`` is an image, uint8 (3, H, W) RGB or of other ``channels``, and its mask, uint8 (H, W) with
    255 = ignore. The same index always gives the same pixels. Unusable content raises :class:`UserError` naming the
    file.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        labels: Labels,
        count: int,
        size: tuple[int, int] | None,
        cache: bool,
        channels: int = 3,
    ) -> None:
        self.name = name
        self.split = split
        self.labels = labels
        self._count = count
        self._size = size
        self._cache: PixelCache | DiskCache | None = None
        if cache and size is not None:
            self._cache = PixelCache(count, size, channels)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        index = self._position(index)
        pair = self._cache.get(index) if self._cache else None
        if pair is None:
            pair = self._read(index)
            if self._cache:
                self._cache.put(index, *pair)
        return tv_tensors.Image(pair[0]), tv_tensors.Mask(pair[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of item 0; of every item if the configuration sets a size."""
        return self._size or self._native_size(0)

    @property
    def kept_in(self) -> Literal["memory", "disk"] | None:
        """Where decoded images are kept, so that a second reading is fast."""
        if self._cache is None:
            return None
        return "disk" if isinstance(self._cache, DiskCache) else "memory"

    @property
    def is_255_stated(self) -> bool:
        """Whether the data say what the value 255 means; false if it is ignored by default."""
        return True

    def native_size(self, index: int) -> tuple[int, int]:
        """(height, width) of item ``index`` before resizing."""
        return self._native_size(self._position(index))

    def skipped(self) -> tuple[str, ...]:
        """What lies beside the files of this split and is not read, in words."""
        return ()

    def fingerprint(self) -> str:
        """A hash of the images by name and size: equal for the same images, wherever they lie."""
        return f"{self._count} generated"

    @abstractmethod
    def file_name(self, index: int) -> str:
        """A readable name of item ``index``: the image's path below the root, or a name for a generated image."""

    @abstractmethod
    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image uint8 (3, H, W) and mask uint8 (H, W) of item ``index``, at the configured size."""

    @abstractmethod
    def _native_size(self, index: int) -> tuple[int, int]:
        """(height, width) of item ``index`` before resizing."""

    def _position(self, index: int) -> int:
        if not -self._count <= index < self._count:
            raise IndexError(f"{self.name} {self.split} has {self._count} images, given index {index}")
        return index % self._count


def check_dataset(dataset: SegmentationDataset) -> tuple[str, ...]:
    """Read every item and return the problems, one line each; empty if there are none."""
    problems = (_problem(dataset, index) for index in range(len(dataset)))
    return tuple(problem for problem in problems if problem is not None)


def _problem(dataset: SegmentationDataset, index: int) -> str | None:
    try:
        dataset[index]
    except UserError as error:
        return str(error)
    return None
