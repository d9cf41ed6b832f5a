"""Several splits as one dataset."""

from __future__ import annotations

import torch

from dnas.data.dataset import SegmentationDataset
from dnas.errors import UserError


class JoinedDataset(SegmentationDataset):
    """The images of ``parts``, one after the other, under the name of ``split``; the parts keep their caches.

    Raises :class:`UserError` if their classes differ.
    """

    def __init__(self, parts: tuple[SegmentationDataset, ...], split: str) -> None:
        first = parts[0]
        for part in parts[1:]:
            if part.labels != first.labels:
                raise UserError(f"{first.name}: the splits {first.split} and {part.split} have different classes")
        count = sum(len(part) for part in parts)
        super().__init__(name=first.name, split=split, labels=first.labels, count=count, size=None, cache=False)
        self._parts = parts

    def file_name(self, index: int) -> str:
        """The name that the part gives it."""
        part, inner = self._locate(index)
        return part.file_name(inner)

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        part, inner = self._locate(index)
        image, mask = part[inner]
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)

    def _native_size(self, index: int) -> tuple[int, int]:
        part, inner = self._locate(index)
        image, _ = part[inner]
        return int(image.shape[-2]), int(image.shape[-1])

    @property
    def image_size(self) -> tuple[int, int]:
        """That of the first part."""
        return self._parts[0].image_size

    def _locate(self, index: int) -> tuple[SegmentationDataset, int]:
        for part in self._parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(f"{self.name} {self.split} has {len(self)} images")
