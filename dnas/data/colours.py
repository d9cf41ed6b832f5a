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
