from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from dnas.training import SegmentationMetrics
from dnas.training.boundary import boundary_distance, near_contours

NAMES = ("a", "b", "c", "d")


def _band(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask without its erosion by a 3x3 square; outside the image there is nothing."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def _reference(predictions: np.ndarray, labels: np.ndarray, distance: int) -> dict[str, float | None]:
    """Boundary IoU by its definition, one class and one mask after the other."""
    hits, union = np.zeros(4), np.zeros(4)
    for predicted, label in zip(predictions, labels, strict=True):
        masked = np.where(label == 255, 255, predicted)
        for index in range(4):
            truth, guess = _band(label == index, distance), _band(masked == index, distance)
            hits[index] += (truth & guess).sum()
            union[index] += (truth | guess).sum()
    return {name: h / u if u else None for name, h, u in zip(NAMES, hits, union, strict=True)}


def _blobs(seed: int, threshold: float) -> np.ndarray:
    """Two maps of smooth regions of the classes 0 to 2."""
    noise = np.random.default_rng(seed).random((2, 24, 31))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3))
    return np.digitize(smooth, np.quantile(smooth, [0.4, threshold]))


@pytest.mark.parametrize("ratio", [0.02, 0.06])
def test_boundary_iou_equals_its_definition_by_erosion(ratio):
    labels, predictions = _blobs(0, 0.7), _blobs(0, 0.8)
    predictions[:, 5:9, 3:20] = 1
    labels[:, :4, :7] = 255
    metrics = SegmentationMetrics(NAMES, boundary=ratio)
    for label, predicted in zip(torch.tensor(labels), torch.tensor(predictions), strict=True):
        metrics.update(predicted[None], label[None])
    evaluation = metrics.result()
    expected = _reference(predictions, labels, boundary_distance((24, 31), ratio))
    assert evaluation.boundary_iou == pytest.approx(expected)
    assert evaluation.boundary_iou["d"] is None
    assert evaluation.boundary_miou == pytest.approx(
        np.mean([value for value in expected.values() if value is not None])
    )
    assert evaluation.to_mapping()["boundary_miou"] == evaluation.boundary_miou
    assert evaluation.boundary_miou < evaluation.miou  # the disagreement lies at contours


def test_the_distance_is_a_share_of_the_diagonal():
    assert boundary_distance((1024, 2048), 0.005) == 11
    assert boundary_distance((30, 40), 0.02) == 1
    assert boundary_distance((8, 8), 0.001) == 1


def test_the_band_of_a_square_has_the_width_of_the_distance():
    labels = torch.zeros(1, 20, 20, dtype=torch.int64)
    labels[0, 5:15, 5:15] = 1
    near = near_contours(labels, 2)[0]
    inside = labels[0] == 1
    assert int((near & inside).sum()) == 10 * 10 - 6 * 6
    assert near[:2].all()  # the image's edge is a contour
