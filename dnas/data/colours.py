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
