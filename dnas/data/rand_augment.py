"""RandAugment for pairs of image and mask: a few random operators of one magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dnas.config import Field, config
from dnas.data.colours import adjust_contrast
from dnas.data.labels import IGNORE_LABEL

Operator = Literal["auto_contrast", "equalize", "rotate", "color", "contrast", "brightness", "sharpness"]
REGSEG_OPERATORS: tuple[Operator, ...] = (
    *("auto_contrast", "equalize", "rotate", "color", "contrast", "brightness", "sharpness"),
)

_LARGEST_TURN = 30.0
"""Degrees at magnitude 1, as in torchvision's RandAugment."""
_LARGEST_CHANGE = 0.9
"""Of the factor of colour, contrast, brightness and sharpness at magnitude 1, as in torchvision's RandAugment."""


@config
class RandAugmentConfig:
    """RandAugment (Cubuk et al. 2020), reduced to operators that suit segmentation.

    count: operators for each image, drawn with replacement.
    magnitude: from 0 to 1, of torchvision's ranges: up to 30 degrees, or factors from 1 - 0.9 to 1 + 0.9; the sign is
        random. "auto_contrast" and "equalize" have none.
    operators: to draw from; the default is RegSeg's set (regseg_v3, section 4.2).
    """

    count: int = Field(default=2, ge=1)
    magnitude: float = Field(default=0.2, ge=0, le=1)
    operators: Annotated[tuple[Operator, ...], Field(min_length=1)] = REGSEG_OPERATORS


def rand_augment(
    image: tv_tensors.Image, mask: tv_tensors.Mask, config: RandAugmentConfig, fill: Sequence[int]
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """``image`` uint8 (3, H, W) and ``mask`` uint8 (H, W) after random operators.

    Random numbers come from torch's CPU generator. A rotation turns both; it fills the corners with the colour ``fill``
    and the label 255.
    """
    for _ in range(config.count):
        operator = config.operators[int(torch.randint(len(config.operators), ()).item())]
        sign = 1 if torch.rand(()).item() < 0.5 else -1
        if operator == "rotate":
            angle = sign * config.magnitude * _LARGEST_TURN
            image = F.rotate(image, angle, InterpolationMode.BILINEAR, fill=list(fill))
            # A mask of one channel: rotations need a leading dimension.
            mask = F.rotate(mask[None], angle, InterpolationMode.NEAREST, fill=IGNORE_LABEL)[0]
            mask = tv_tensors.Mask(mask)
        else:
            image = change_colours(image, operator, 1 + sign * config.magnitude * _LARGEST_CHANGE)
    return image, mask


def change_colours(image: tv_tensors.Image, operator: Operator, factor: float) -> tv_tensors.Image:
    """``image`` uint8 (3, H, W) after an operator that leaves every pixel in its place."""
    changed: tv_tensors.Image
    if operator == "auto_contrast":
        changed = F.autocontrast(image)
    elif operator == "equalize":
        changed = F.equalize(image)
    elif operator == "color":
        changed = F.adjust_saturation(image, factor)
    elif operator == "contrast":
        changed = tv_tensors.Image(adjust_contrast(image, factor))
    elif operator == "brightness":
        changed = F.adjust_brightness(image, factor)
    else:
        changed = F.adjust_sharpness(image, factor)
    return changed
