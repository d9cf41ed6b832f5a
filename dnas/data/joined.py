"""Several splits as one dataset."""

from __future__ import annotations

import torch

from dnas.data.dataset import SegmentationDataset
from dnas.data.matching import match_classes


class JoinedDataset(SegmentationDataset):
    """The images of ``parts``, one after the other, under the name of ``split``; the parts keep their caches.

    Classes are in the order of the first part. Raises :class:`UserError` if the parts have classes of other names.
    """

    def __init__(self, parts: tuple[SegmentationDataset, ...], split: str) -> None:
        first, *others = parts
        wanted_by = f"{first.name} {first.split}"
        parts = (first, *(match_classes(part, first.labels.names, wanted_by) for part in others))
        count = sum(len(part) for part in parts)
        super().__init__(name=first.name, split=split, labels=first.labels, count=count, size=None, cache=False)
        self._parts = parts

    def fingerprint(self) -> str:
        """Those of the parts."""
        return ", ".join(part.fingerprint() for part in self._parts)

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
