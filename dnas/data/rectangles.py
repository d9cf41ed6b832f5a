"""Thin rectangles of full height whose class is visible only at their foot (RegSeg, version 3, section 3.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dnas.data.dataset import SegmentationDataset
from dnas.data.labels import Labels, builtin_classes
from dnas.data.seeding import mix_seed

DEFAULT_SIZE = (256, 256)
_THINNEST, _THICKEST = 8 / 1024, 96 / 1024
"""Range of the widths, as fractions of the image's width; the paper's thinnest rectangle is 8 of 1024 pixels wide."""
_FOOT = 1 / 16
"""Fraction of the height that shows the class."""


@dataclass(frozen=True)
class Bars:
    """Rectangles of one image: ``left`` edge and ``width`` in pixels and ``label``; no two touch each other."""

    left: tuple[int, ...]
    width: tuple[int, ...]
    label: tuple[int, ...]


def draw_bars(
    bars: Bars, size: tuple[int, int], labels: Labels, texture_seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Image uint8 (H, W, 3) and mask uint8 (H, W).

    Above the foot all rectangles have the same light grey, and the noise does not depend on the labels, so the pixels
    there do not reveal the class.
    """
    height, width = size
    foot = max(1, round(height * _FOOT))
    rng = np.random.default_rng(texture_seed)
    image = np.empty((height, width, 3), np.float32)
    image[:] = labels.colours[0]
    mask = np.zeros(size, np.uint8)
    for left, wide, label in zip(bars.left, bars.width, bars.label, strict=True):
        columns = slice(left, left + wide)
        image[:, columns] = 176
        image[height - foot :, columns] = labels.colours[label]
        mask[:, columns] = label
    image += rng.normal(0, 8, (height, width, 1)).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), mask


def random_bars(width: int, num_classes: int, seed: int) -> Bars:
    """Three to eight rectangles across ``width`` pixels, fewer if they do not fit, with random labels from 1 up."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    # Log-uniform widths, so that thin rectangles, the difficult ones, are frequent.
    fractions = np.exp(rng.uniform(np.log(_THINNEST), np.log(_THICKEST), count))
    centres = (np.arange(count) + rng.uniform(0.25, 0.75, count)) / count
    chosen = np.random.default_rng(mix_seed("classes", seed)).integers(1, num_classes, count)
    kept: list[tuple[int, int, int]] = []
    end = -1
    for centre, fraction, label in zip(centres, fractions, chosen, strict=True):
        wide = max(1, round(float(fraction) * width))
        left = max(0, round(float(centre) * width - wide / 2))
        if left > end and left + wide <= width:
            kept.append((left, wide, int(label)))
            end = left + wide
    left_edges, widths, classes = zip(*kept, strict=True) if kept else ((), (), ())
    return Bars(tuple(left_edges), tuple(widths), tuple(classes))


class RectanglesDataset(SegmentationDataset):
    """Generated images; each depends only on (seed, split, index, size)."""

    def __init__(self, *, split: str, count: int, size: tuple[int, int], seed: int, cache: bool) -> None:
        labels = builtin_classes("rectangles").labels
        super().__init__(name="rectangles", split=split, labels=labels, count=count, size=size, cache=cache)
        self._pixels = size
        self._seed = seed

    def file_name(self, index: int) -> str:
        """A name such as ``rectangles/train/0003``."""
        return f"rectangles/{self.split}/{self._position(index):04d}"

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        seed = mix_seed("rectangles", self._seed, self.split, index)
        bars = random_bars(self._pixels[1], self.labels.num_classes, seed)
        image, mask = draw_bars(bars, self._pixels, self.labels, mix_seed("texture", seed))
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)

    def _native_size(self, index: int) -> tuple[int, int]:
        return self._pixels


def top_quarter(prediction: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    """The number of correctly labelled rectangle pixels in the top quarter of images, and the number of all of them.

    ``prediction`` and ``labels`` are class indices (..., H, W). The classes are visible only at the foot, so a network
    that is better than chance has a field of view of more than 1.5 times the height.
    """
    top = labels.shape[-2] // 4
    found, truth = prediction[..., :top, :], labels[..., :top, :]
    inside = truth > 0
    return int((found[inside] == truth[inside]).sum()), int(inside.sum())
