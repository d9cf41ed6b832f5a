"""Changes of colour that give the same bits for any number of threads."""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F


def adjust_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Blend uint8 (3, H, W) with its mean grey, like torchvision's ``adjust_contrast``.

    The mean is computed in double precision: torchvision's float32 sum depends on the number of threads, which is
    smaller in a worker process than in the main process.
    """
    mean = F.rgb_to_grayscale(image).as_subclass(torch.Tensor).to(torch.float64).mean().item()
    blended = image.as_subclass(torch.Tensor).to(torch.float32).mul_(factor).add_((1 - factor) * mean)
    result: torch.Tensor = tv_tensors.wrap(blended.clamp_(0, 255).to(torch.uint8), like=image)
    return result


def adjust_channels(image: torch.Tensor, brightness: float | None, contrast: float | None) -> torch.Tensor:
    """Scale uint8 (C, H, W) of any channels by ``brightness``, then blend it with its mean by ``contrast``."""
    values = image.as_subclass(torch.Tensor).to(torch.float32)
    if brightness is not None:
        values = (values * brightness).clamp_(0, 255)
    if contrast is not None:
        mean = values.to(torch.float64).mean().item()
        values = values.mul(contrast).add_((1 - contrast) * mean)
    return values.clamp_(0, 255).to(torch.uint8)


def scale_values(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness of uint8 (N, 3, H, W) by ``factors`` float32 (N, 1, 1, 1), like torchvision's for one image."""
    return images.mul(factors).clamp_(0, 255).to(torch.uint8)


def blend_with_grey(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Saturation of uint8 (N, 3, H, W) by ``factors`` float32 (N, 1, 1, 1), like torchvision's for one image."""
    grey = F.rgb_to_grayscale(images)
    return images.mul(factors).add_(grey.mul(1 - factors)).clamp_(0, 255).to(torch.uint8)


def blend_with_mean(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Contrast of uint8 (N, 3, H, W) by ``factors`` float32 (N, 1, 1, 1): :func:`adjust_contrast` of every image.

    The mean stays on the device of the images.
    """
    mean = F.rgb_to_grayscale(images).to(torch.float64).mean(dim=(1, 2, 3), keepdim=True)
    shift = ((1 - factors.double()) * mean).to(torch.float32)
    return images.mul(factors).add_(shift).clamp_(0, 255).to(torch.uint8)
