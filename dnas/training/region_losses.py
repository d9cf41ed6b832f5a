"""Losses of whole regions instead of single pixels, which small classes gain from: Dice and Lovasz."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.data import IGNORE_LABEL
from dnas.training.losses import resize_logits

RegionLoss = Literal["none", "dice", "lovasz"]


def region_loss(kind: RegionLoss, logits: Tensor, labels: Tensor, ignore_label: int = IGNORE_LABEL) -> Tensor:
    """The loss ``kind`` of ``logits`` (N, classes, h, w), resized to ``labels`` (N, H, W); 0 for "none".

    A float32 scalar even inside autocast. Ignored pixels are left out; it is 0 if no pixel is valid.
    """
    if kind == "none":
        return logits.new_zeros(())
    with torch.autocast(logits.device.type, enabled=False):
        full = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        probabilities = F.softmax(resize_logits(full, (labels.shape[-2], labels.shape[-1])), dim=1)
        valid = labels.flatten() != ignore_label
        # (pixels, classes): all valid pixels of the batch are one region, so that a class may be absent in an image.
        chosen, truth = probabilities.movedim(1, -1).flatten(0, 2)[valid], labels.flatten()[valid]
        return dice_loss(chosen, truth) if kind == "dice" else lovasz_softmax(chosen, truth)


def dice_loss(probabilities: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """1 minus the soft Dice coefficient, averaged over the classes that occur (Milletari et al. 2016, "V-Net").

    ``probabilities`` (pixels, classes) and ``truth`` (pixels,), class indices. With p the probabilities and y the truth
    of a class, its coefficient is (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth).
    """
    target = F.one_hot(truth, probabilities.shape[1]).to(probabilities.dtype)
    overlap, predicted, true = (probabilities * target).sum(0), probabilities.sum(0), target.sum(0)
    losses = 1 - (2 * overlap + smooth) / (predicted + true + smooth)
    present = true > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


def lovasz_softmax(probabilities: Tensor, truth: Tensor) -> Tensor:
    """The Lovasz extension of 1 - IoU, averaged over the classes that occur (Berman et al. 2018, Eq. 11).

    ``probabilities`` (pixels, classes) and ``truth`` (pixels,), class indices.
    """
    losses = []
    for index in torch.unique(truth).tolist():
        foreground = (truth == index).to(probabilities.dtype)
        errors, order = (foreground - probabilities[:, index]).abs().sort(descending=True)
        losses.append((errors * _steps_of_iou(foreground[order])).sum())
    return torch.stack(losses).mean() if losses else probabilities.sum() * 0


def _steps_of_iou(foreground: Tensor) -> Tensor:
    """By how much 1 - IoU grows when one pixel more is wrong, in the order of ``foreground`` (pixels,), 0 or 1."""
    total = foreground.sum()
    intersection = total - foreground.cumsum(0)
    union = total + (1 - foreground).cumsum(0)
    loss = 1 - intersection / union
    return torch.diff(loss, prepend=loss.new_zeros(1))
