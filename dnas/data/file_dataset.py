"""A dataset of image and mask files."""

from __future__ import annotations

from pathlib import Path

import torch

from dnas.data.dataset import SegmentationDataset
from dnas.data.decode import MAX_PIXELS, read_image, read_mask, read_size, resize_image, resize_mask
from dnas.data.labels import Labels
from dnas.data.masks import MaskDecoder
from dnas.data.pairs import Pair
from dnas.errors import UserError


class FileDataset(SegmentationDataset):
    """Pairs of image and mask files below ``root``, read on access and resized to ``size`` if it is given.

    Files of more than ``max_pixels`` are refused by their header.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        labels: Labels,
        root: Path,
        pairs: tuple[Pair, ...],
        decoder: MaskDecoder,
        size: tuple[int, int] | None,
        cache: bool,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(name=name, split=split, labels=labels, count=len(pairs), size=size, cache=cache)
        self._root = root
        self._pairs = pairs
        self._decoder = decoder
        self._max_pixels = max_pixels

    def file_name(self, index: int) -> str:
        """The image's path below the root."""
        return self._pairs[self._position(index)].image.relative_to(self._root).as_posix()

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self._pairs[index]
        image = read_image(pair.image, self._max_pixels)
        mask = self._decoder.decode(read_mask(pair.mask, self._max_pixels), pair.mask)
        if image.shape[-2:] != mask.shape:
            given, expected = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape[-2:]))
            raise UserError(f"{pair.mask}: the mask is {given} pixels, but its image {pair.image.name} is {expected}")
        if self._size:
            image, mask = resize_image(image, self._size), resize_mask(mask, self._size)
        return image.contiguous(), mask.contiguous()

    def _native_size(self, index: int) -> tuple[int, int]:
        return read_size(self._pairs[index].image)
