"""Losses of auxiliary heads that predict where classes meet: one logit for each pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dnas.data import IGNORE_LABEL
from dnas.training.losses import resize_logits

BoundaryLoss = Literal["balanced", "detail"]

_LAPLACIAN_STRIDES = (1, 2, 4)
_LAPLACIAN_WEIGHTS = (0.6, 0.3, 0.1)
_DETAIL = 0.1
"""Threshold of details (STDC)."""


def boundary_loss(kind: BoundaryLoss, logits: Tensor, labels: Tensor, ignore_label: int = IGNORE_LABEL) -> Tensor:
    """The loss of ``logits`` (N, 1, h, w), resized to ``labels`` (N, H, W).

    "balanced": cross-entropy in which boundary and other pixels have the same weight in all (PIDNet).
    "detail": cross-entropy plus 1 minus the Dice coefficient (STDC's detail guidance). A float32 scalar even inside
    autocast. Ignored pixels are left out; it is 0 if no pixel is valid.
    """
    with torch.autocast(logits.device.type, enabled=False):
        full = resize_logits(logits.float(), (labels.shape[-2], labels.shape[-1]))[:, 0]
        valid = labels != ignore_label
        edges = class_edges(labels, ignore_label) if kind == "balanced" else details(labels)
        chosen, truth = full[valid], edges[valid].to(full.dtype)
        if not len(chosen):
            return logits.float().sum() * 0
        if kind == "balanced":
            share = truth.mean()
            weight = torch.where(truth > 0, 1 - share, share)
            return F.binary_cross_entropy_with_logits(chosen, truth, weight)
        probabilities = torch.sigmoid(chosen)
        overlap = 2 * (probabilities * truth).sum() + 1
        dice = 1 - overlap / (probabilities.square().sum() + truth.square().sum() + 1)
        return F.binary_cross_entropy_with_logits(chosen, truth) + dice


def class_edges(labels: Tensor, ignore_label: int = IGNORE_LABEL, width: int = 2) -> Tensor:
    """Whether another class is within ``width`` pixels, in rows and columns: bool (N, H, W), False if ignored."""
    ignored, classes = labels == ignore_label, labels.float()
    largest = F.max_pool2d(classes.masked_fill(ignored, -1.0), 2 * width + 1, 1, width)
    smallest = -F.max_pool2d((-classes).masked_fill(ignored, -ignore_label - 1.0), 2 * width + 1, 1, width)
    return (largest > smallest) & ~ignored


def details(labels: Tensor) -> Tensor:
    """STDC's details: bool (N, H, W), where the Laplacian of the labels, at three strides, is large.

    The three maps are weighed 6:3:1 and compared with 0.1, as in the published code; so the last one alone is too weak.
    """
    classes = labels.float()[:, None]
    kernel = classes.new_full((1, 1, 3, 3), -1.0)
    kernel[0, 0, 1, 1] = 8.0
    total = torch.zeros_like(classes)
    for stride, weight in zip(_LAPLACIAN_STRIDES, _LAPLACIAN_WEIGHTS, strict=True):
        found = (F.conv2d(classes, kernel, stride=stride, padding=1) > _DETAIL).to(classes.dtype)
        total += weight * F.interpolate(found, size=classes.shape[-2:], mode="nearest")
    return (total > _DETAIL + 1e-6)[:, 0]
