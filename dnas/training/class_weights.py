"""Class weights for the cross-entropy, from the frequencies of the classes in the training images."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from dnas.config import Field
from dnas.data import SegmentationDataset, evenly_spaced
from dnas.data.batching import label_counts
from dnas.errors import UserError

ClassWeighting = Literal["none", "enet", "median_frequency"] | tuple[Annotated[float, Field(ge=0)], ...]
"""How classes are weighted: a rule, or one weight for each class."""

COUNTED_IMAGES = 500
"""Images whose labels are counted, evenly spaced over the training images."""

LARGEST_MEDIAN_WEIGHT = 10.0


def class_weights(weighting: ClassWeighting, dataset: SegmentationDataset, workers: int = 0) -> Tensor | None:
    """Weights (classes,), float32, for the cross-entropy; None for equal weights.

    "enet" is 1 / ln(1.02 + share) of each class's share of the pixels (Paszke et al. 2016, "ENet", section 4).
    "median_frequency" is the median share divided by the class's share, at most 10 (after Eigen and Fergus 2015,
    "Predicting Depth, Surface Normals and Semantic Labels", who count only images that contain the class). Both are
    scaled to a mean of 1. ``workers``: processes that read the labels. Raises :class:`UserError` for a list of another
    length.
    """
    if weighting == "none":
        return None
    if not isinstance(weighting, str):
        if len(weighting) != dataset.labels.num_classes:
            raise UserError(
                f"class_weights: given {len(weighting)} weights, {dataset.name} has {dataset.labels.num_classes} "
                "classes; give one weight for each"
            )
        return torch.tensor(weighting, dtype=torch.float32)
    return weights_of_shares(weighting, class_shares(dataset, workers=workers))


def weights_of_shares(weighting: Literal["enet", "median_frequency"], shares: Tensor) -> Tensor:
    """Weights (classes,), float32, for the shares (classes,) of the classes in the labelled pixels."""
    if weighting == "enet":
        weights = 1 / torch.log(1.02 + shares)
    else:
        weights = (shares[shares > 0].median() / shares).clamp(max=LARGEST_MEDIAN_WEIGHT)
    return (weights / weights.mean()).float()


def class_shares(dataset: SegmentationDataset, images: int = COUNTED_IMAGES, *, workers: int = 0) -> Tensor:
    """Share of each class in the labelled pixels of at most ``images`` evenly spaced images; (classes,), float64."""
    counted = evenly_spaced(len(dataset), min(len(dataset), images))
    pixels = label_counts(dataset, counted, workers)[:, : dataset.labels.num_classes].sum(0)
    if not pixels.any():
        raise UserError(f"{dataset.name} {dataset.split}: no pixel is labelled, so class_weights cannot be computed")
    return pixels.double() / pixels.sum()
