"""Several splits of a dataset as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torchvision import tv_tensors

from dnas.data.dataset import SegmentationDataset
from dnas.errors import UserError


class JoinedDataset(SegmentationDataset):
    """The items of several datasets of the same classes one after the other, such as train and val as ``trainval``."""

    def __init__(self, parts: Sequence[SegmentationDataset], split: str) -> None:
        first = parts[0]
        if any(part.labels != first.labels for part in parts):
            names = ", ".join(part.split for part in parts)
            raise UserError(f"{first.name}: the splits {names} have different classes")
        count = sum(len(part) for part in parts)
        super().__init__(name=first.name, split=split, labels=first.labels, count=count, size=None, cache=False)
        self._parts = tuple(parts)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        part, position = self._find(index)
        return part[position]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of item 0."""
        return self._parts[0].image_size

    @property
    def kept_in(self) -> Literal["memory", "disk"] | None:
        """Where all parts keep their images; None if they differ."""
        places = {part.kept_in for part in self._parts}
        return places.pop() if len(places) == 1 else None

    def file_name(self, index: int) -> str:
        """The name that the part has for the item."""
        part, position = self._find(index)
        return part.file_name(position)

    def fingerprint(self) -> str:
        """Those of the parts."""
        return "; ".join(part.fingerprint() for part in self._parts)

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self[index]
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)

    def _native_size(self, index: int) -> tuple[int, int]:
        part, position = self._find(index)
        return part._native_size(position)

    def _find(self, index: int) -> tuple[SegmentationDataset, int]:
        position = self._position(index)
        for part in self._parts:
            if position < len(part):
                return part, position
            position -= len(part)
        raise IndexError(index)  # unreachable: _position has checked the index
