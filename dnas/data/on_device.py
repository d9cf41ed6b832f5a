"""The end of a transform on the device that trains: mirroring, changes of colour and normalisation of bytes.

Workers crop and resize, draw the random numbers, and hand over bytes, a quarter of the floating-point values. The
numbers are those that the whole transform draws, so that batches are the same, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dnas.data.colours import blend_with_grey, blend_with_mean, scale_values

Prepared = tuple[Tensor, Tensor, Tensor]
"""Image uint8 (C, h, w), mask uint8 (h, w), and numbers float32 (9,) of :func:`pack_numbers`; (0,) in evaluation."""

_FLIP, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = 0, 1, 2, 3, 4, 5
_FACTORS = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")


def pack_numbers(flip: bool, jitter: dict[str, Any]) -> Tensor:
    """Whether to mirror, and the parameters of torchvision's ``ColorJitter``, as float32 (9,); NaN for no change."""
    factors = [float("nan") if jitter[name] is None else jitter[name] for name in _FACTORS]
    return torch.tensor([float(flip), *factors, *jitter["fn_idx"].tolist()], dtype=torch.float32)


class DeviceFinish:
    """Finishes batches of :data:`Prepared` samples on a device, without waiting for it."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        """``mean``, ``std``: of each channel in 0..1."""
        self._device = device
        self._mean, self._std = (torch.tensor(values)[:, None, None].to(device) for values in (mean, std))

    def __call__(self, images: Tensor, masks: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, h, w) and labels int64 (N, h, w) on the device; all arguments are on the CPU."""
        images = images.to(self._device, non_blocking=True)
        labels = masks.to(self._device, non_blocking=True)
        if numbers.shape[1]:
            images, labels = _augmented(images, labels, numbers)
        values = images.to(torch.float32).mul_(1 / 255)
        return values.sub_(self._mean).div_(self._std), labels.to(torch.int64)


def _augmented(images: Tensor, masks: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes after mirroring and changes of colour; ``numbers`` are read on the CPU and used on the device."""
    rows = numbers.tolist()
    there = numbers.to(images.device, non_blocking=True)
    if any(row[_FLIP] for row in rows):
        flip = there[:, _FLIP].bool()
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        masks = torch.where(flip[:, None, None], masks.flip(-1), masks)
    factors = there[:, :, None, None, None]
    if images.shape[1] != 3:
        # Saturation and hue are of RGB.
        return _adjusted_channels(images, rows, factors), masks
    samples = list(images.unbind())
    for position in range(_ORDER, _ORDER + len(_FACTORS)):
        for kind in range(_BRIGHTNESS, _HUE + 1):
            # All samples that have this change at this position, together.
            chosen = [n for n, row in enumerate(rows) if row[position] + 1 == kind and not math.isnan(row[kind])]
            if chosen:
                group = torch.stack([samples[n] for n in chosen])
                changed = _changed(group, kind, [rows[n][kind] for n in chosen], [factors[n, kind] for n in chosen])
                for n, sample in zip(chosen, changed, strict=True):
                    samples[n] = sample
    return torch.stack(samples), masks


def _changed(images: Tensor, kind: int, known: Sequence[float], factors: Sequence[Tensor]) -> Sequence[Tensor]:
    """One change of colour of bytes (N, 3, h, w), with a factor for each image: a number, and a tensor (1, 1, 1)."""
    if kind == _HUE:
        return [F.adjust_hue(image, factor) for image, factor in zip(images, known, strict=True)]
    adjust: Callable[[Tensor, Tensor], Tensor] = {
        _BRIGHTNESS: scale_values,
        _CONTRAST: blend_with_mean,
        _SATURATION: blend_with_grey,
    }[kind]
    return adjust(images, torch.stack(list(factors))).unbind()


def _adjusted_channels(images: Tensor, rows: Sequence[Sequence[float]], factors: Tensor) -> Tensor:
    """Bytes (N, C, h, w) of any channels, like :func:`dnas.data.colours.adjust_channels`."""
    values = images.to(torch.float32)
    if not math.isnan(rows[0][_BRIGHTNESS]):
        values = (values * factors[:, _BRIGHTNESS]).clamp_(0, 255)
    if not math.isnan(rows[0][_CONTRAST]):
        mean = values.to(torch.float64).mean(dim=(1, 2, 3), keepdim=True)
        factor = factors[:, _CONTRAST]
        values = values.mul(factor).add_(((1 - factor.double()) * mean).to(torch.float32))
    return values.clamp_(0, 255).to(torch.uint8)
