"""Bit depth, channels and statistics of images, from a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnas.data.decode import ValueRange, to_image
from dnas.data.splitting import evenly_spaced
from dnas.data.stored import StoredImage, read_stored
from dnas.errors import UserError
from dnas.progress import Progress

_IMAGES_READ = 100


@dataclass(frozen=True)
class ImageFacts:
    """Settings of the data that differ from the usual, and notes on them."""

    settings: dict[str, Any]
    notes: tuple[str, ...]


def look_at_images(paths: Sequence[Path], progress: Progress) -> ImageFacts:
    """The ``range``, ``channels``, ``mean`` and ``std`` that evenly spaced images need.

    Raises :class:`UserError` for images of different numbers of channels, unless they are grey and RGB.
    """
    chosen = [paths[index] for index in evenly_spaced(len(paths), min(len(paths), _IMAGES_READ))]
    progress.begin("reading images", len(chosen))
    channels: Counter[int] = Counter()
    largest: list[float] = []
    bits = 0
    for path in chosen:
        stored = read_stored(path)
        channels[_opaque_channels(stored)] += 1
        if stored.palette is None and stored.white is None:
            largest.append(float(stored.pixels.max()))
            bits = max(bits, stored.bits)
        progress.advance()
    settings: dict[str, Any] = {}
    notes: list[str] = []
    value_range = _range_of(largest, bits, notes)
    if value_range is not None:
        settings["range"] = list(value_range)
    count = _common_channels(channels, chosen)
    if count != 3:
        settings |= {"channels": count, **_statistics(chosen, value_range, count)}
        notes.append(f"images of {count} channels; mean and std are those of {len(chosen)} images")
    return ImageFacts(settings, tuple(notes))


def _opaque_channels(stored: StoredImage) -> int:
    if stored.palette is not None:
        return 3
    return stored.channels - (stored.transparent and stored.channels in (2, 4))


def _common_channels(found: Counter[int], paths: Sequence[Path]) -> int:
    if set(found) <= {1, 3}:
        return 3 if found[3] else 1
    if len(found) > 1:
        kinds = " and ".join(f"{count} of {channels}" for channels, count in sorted(found.items()))
        raise UserError(
            f"{paths[0].parent}: images of different numbers of channels: {kinds}; convert them to one kind"
        )
    return next(iter(found))


def _range_of(largest: Sequence[float], bits: int, notes: list[str]) -> ValueRange | None:
    """The range of values of more than 8 bits: the whole of the bits that the largest value needs."""
    if not largest:
        return None
    top = max(largest)
    if top <= 1:
        notes.append("values up to 1: range [0, 1]; change range if the images are dark")
        return 0, 1
    needed = max(8, int(top).bit_length())
    notes.append(
        f"values up to {top:g} in files of {bits} bits: range of {needed} bits; change range if they have others"
    )
    return 0, (1 << needed) - 1


def _statistics(paths: Sequence[Path], value_range: ValueRange | None, channels: int) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel in 0..1, over all pixels."""
    total, squares, pixels = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for path in paths:
        image = to_image(read_stored(path), path, value_range, channels).double().flatten(1) / 255
        total, squares, pixels = total + image.sum(1), squares + (image**2).sum(1), pixels + image.shape[1]
    mean = total / pixels
    deviation = (squares / pixels - mean**2).clamp(min=1e-6).sqrt()
    return {"mean": [round(v, 4) for v in mean.tolist()], "std": [round(v, 4) for v in deviation.tolist()]}
