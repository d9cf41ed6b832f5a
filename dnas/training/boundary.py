"""Boundary IoU: the intersection over union of the pixels near the contours of the classes.

Cheng, Girshick, Dollar, Berg, Kirillov: Boundary IoU: Improving Object-Centric Image Segmentation Evaluation
(CVPR 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from dnas.data import IGNORE_LABEL

_OUTSIDE = -1
"""Label of the pixels outside the image: the edge of the image is a contour, as in the authors' implementation."""


class BoundaryIoU(Metric):
    """Accumulates, for each class, the pixels within a distance of its contours; they lie inside the class.

    ``ratio``: the distance as a share of the image's diagonal. The paper takes 0.02, and 0.005 for large images such as
    those of Cityscapes. Pixels to ignore are ignored in the prediction, too.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, ratio: float) -> None:
        super().__init__()
        self._num_classes, self._ratio = num_classes, ratio
        # Rows: near both contours, near that of the label, near that of the prediction.
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add classes (N, H, W) and labels (N, H, W), integers with 255 = ignore."""
        distance = boundary_distance((labels.shape[-2], labels.shape[-1]), self._ratio)
        predicted = torch.where(labels == IGNORE_LABEL, IGNORE_LABEL, predictions)
        near_label, near_prediction = near_contours(labels, distance), near_contours(predicted, distance)
        both = near_label & near_prediction & (labels == predicted)
        for row, values in enumerate((labels[both], labels[near_label], predicted[near_prediction])):
            kept = values[values != IGNORE_LABEL]
            self.counts[row] += torch.bincount(kept, minlength=self._num_classes)

    def compute(self) -> Tensor:
        """IoU of each class (classes,) from 0 to 1; NaN for a class that occurs in neither labels nor predictions."""
        hits, labels, predictions = self.counts.cpu().double().unbind()
        return torch.div(hits, labels + predictions - hits)


def boundary_distance(size: tuple[int, int], ratio: float) -> int:
    """The distance in pixels for images of ``size`` (height, width); at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def near_contours(labels: Tensor, distance: int) -> Tensor:
    """Which pixels (N, H, W) have another label, or the image's edge, within ``distance`` along rows and columns.

    This is a class without its erosion by ``distance`` steps of a 3x3 square, for all classes at once.
    """
    padded = F.pad(labels.to(torch.float32), (distance,) * 4, value=_OUTSIDE)
    # The largest value of a square is that of its rows and then its columns, which takes far fewer comparisons.
    window = 2 * distance + 1

    def largest(values: Tensor) -> Tensor:
        rows = F.max_pool2d(values, (1, window), stride=1)
        return F.max_pool2d(rows, (window, 1), stride=1)

    return largest(padded) != -largest(-padded)
