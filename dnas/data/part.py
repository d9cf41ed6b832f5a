"""Some items of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torchvision import tv_tensors

from dnas.data.dataset import SegmentationDataset


class DatasetPart(SegmentationDataset):
    """The items ``indices`` of a dataset, such as training images that are held out."""

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int]) -> None:
        super().__init__(
            name=dataset.name,
            split=dataset.split,
            labels=dataset.labels,
            count=len(indices),
            size=None,
            cache=False,
        )
        self._dataset, self._indices = dataset, tuple(indices)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        return self._dataset[self._indices[self._position(index)]]

    @property
    def kept_in(self) -> Literal["memory", "disk"] | None:
        """Where the dataset keeps its images."""
        return self._dataset.kept_in

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the dataset's item 0."""
        return self._dataset.image_size

    def file_name(self, index: int) -> str:
        """The name that the dataset has for the item."""
        return self._dataset.file_name(self._indices[self._position(index)])

    def fingerprint(self) -> str:
        """That of the dataset, with a hash of the indices."""
        return f"{self._dataset.fingerprint()}, part {hashlib.sha256(repr(self._indices).encode()).hexdigest()[:16]}"

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self[index]
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)

    def _native_size(self, index: int) -> tuple[int, int]:
        return self._dataset._native_size(self._indices[self._position(index)])
