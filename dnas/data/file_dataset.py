"""A dataset of image and mask files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import PIL
import torch
import torchvision

from dnas.data.config import CacheKind
from dnas.data.dataset import SegmentationDataset
from dnas.data.decode import ValueRange, mask_values, read_size, resize_image, resize_mask, to_image
from dnas.data.disk_cache import DiskCache
from dnas.data.labels import Labels
from dnas.data.masks import MaskDecoder
from dnas.data.orientation import Orientation, align_mask
from dnas.data.pairs import Pair, describe_others
from dnas.data.stored import MAX_PIXELS, read_stored
from dnas.errors import UserError


class FileDataset(SegmentationDataset):
    """Pairs of image and mask files below ``root``, read on access and resized to ``size`` if it is given.

    ``cache_dir``, ``value_range``, ``orientation``, ``channels`` and ``max_pixels``: see :class:`dnas.data.DataConfig`.
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
        cache: CacheKind,
        cache_dir: str | None = None,
        value_range: ValueRange | None = None,
        orientation: Orientation | None = None,
        channels: int = 3,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        in_memory = cache in (True, "memory")
        super().__init__(
            name=name, split=split, labels=labels, count=len(pairs), size=size, cache=in_memory, channels=channels
        )
        self._root = root
        self._pairs = pairs
        self._decoder = decoder
        self._range, self._orientation, self._channels = value_range, orientation, channels
        self._max_pixels = max_pixels
        if cache == "disk":
            self._cache = self._disk_cache(cache_dir)

    def file_name(self, index: int) -> str:
        """The image's path below the root."""
        image = self._pairs[self._position(index)].image
        return Path(os.path.relpath(image, self._root)).as_posix()

    @property
    def is_255_stated(self) -> bool:
        """Whether the data say what the value 255 means; false if it is ignored by default."""
        return self._decoder.is_255_stated

    def skipped(self) -> tuple[str, ...]:
        """What lies beside the images and masks and is not read, in words."""
        folders = dict.fromkeys(path.parent for pair in self._pairs for path in (pair.image, pair.mask))
        seen = {folder: describe_others(folder) for folder in folders if folder.is_dir()}
        return tuple(f"{folder} also contains {found}, not read" for folder, found in seen.items() if found)

    def fingerprint(self) -> str:
        """A hash of the names and the bytes of all image files, and their number."""
        listing = [(self.file_name(index), pair.image.stat().st_size) for index, pair in enumerate(self._pairs)]
        return f"{len(listing)} files, {hashlib.sha256(repr(listing).encode()).hexdigest()[:16]}"

    def _disk_cache(self, folder: str | None) -> DiskCache:
        libraries = f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}"
        reading = f"range {self._range}, orientation {self._orientation}, masks {self._decoder.settings()}"
        return DiskCache(
            folder,
            name=f"{self.name}-{self.split}",
            settings=f"{self._root.resolve()}: {libraries}, {reading}",
            sources=[(pair.image, pair.mask) for pair in self._pairs],
            channels=self._channels,
            num_classes=self.labels.num_classes,
            size=self._size,
        )

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self._read_pair(self._pairs[index])
        if self._size:
            image, mask = resize_image(image, self._size), resize_mask(mask, self._size)
        return image.contiguous(), mask.contiguous()

    def _read_pair(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and mask at the size of the files."""
        stored_image, stored_mask = (read_stored(path, self._max_pixels) for path in (pair.image, pair.mask))
        image = to_image(stored_image, pair.image, self._range, self._channels)
        orientations = stored_image.orientation, stored_mask.orientation
        height, width = image.shape[-2:]
        values = mask_values(stored_mask, pair.mask)
        values = align_mask(values, orientations, (height, width), (pair.image, pair.mask), self._orientation)
        mask = self._decoder.decode(values, pair.mask, stored_mask.palette)
        if image.shape[-2:] != mask.shape:
            given, expected = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape[-2:]))
            raise UserError(f"{pair.mask}: the mask is {given} pixels, but its image {pair.image.name} is {expected}")
        return image, mask

    def _native_size(self, index: int) -> tuple[int, int]:
        return read_size(self._pairs[index].image)
