"""Mean intersection over union, from one confusion matrix over all pixels of all images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnas.data import IGNORE_LABEL, AugmentationConfig, SegmentationDataset
from dnas.data.evaluation import EvaluationImages
from dnas.errors import UserError
from dnas.input_channels import input_channels
from dnas.progress import NoProgress, Progress
from dnas.training.determinism import order_does_not_matter
from dnas.training.device import Precision, autocast
from dnas.training.inference import InferenceConfig, predict
from dnas.training.losses import resize_logits

REDUCED_WITHOUT = ("truck", "bus", "train")
"""The classes left out of RegSeg's reduced mIoU on Cityscapes: they vary most between trainings (v1, section 4.3)."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network on a dataset, as fractions from 0 to 1."""

    miou: float
    """Mean intersection over union of the classes that occur in labels or predictions."""
    iou: dict[str, float | None]
    """Per class; None for a class that occurs in neither."""
    pixel_accuracy: float
    images: int
    boundary_iou: dict[str, float | None] | None = None
    """IoU near the contours of each class, if it was asked for; see :mod:`dnas.training.boundary`."""
    confusion: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), repr=False)
    """Number of pixels by true class (rows) and predicted class (columns)."""

    @property
    def boundary_miou(self) -> float | None:
        """The mean boundary IoU of the classes that occur."""
        return None if self.boundary_iou is None else _mean(self.boundary_iou.values())

    @property
    def reduced_miou(self) -> float | None:
        """The mIoU without truck, bus and train; None for classes that do not include these three."""
        return self.miou_without(REDUCED_WITHOUT) if self.iou.keys() > set(REDUCED_WITHOUT) else None

    def miou_without(self, names: Iterable[str]) -> float:
        """The mIoU without some classes; a name that is not a class is a :class:`UserError`."""
        left_out = set(names)
        if unknown := sorted(left_out - self.iou.keys()):
            raise UserError(f"no class {unknown[0]!r}, expected some of {', '.join(self.iou)}")
        if left_out == self.iou.keys():
            raise UserError("all classes are left out of the mIoU, expected at least one that is not")
        return _mean(value for name, value in self.iou.items() if name not in left_out)

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers, ready for JSON; without the confusion matrix and without scores that were not computed."""
        scores = {
            "miou": self.miou,
            "iou": self.iou,
            "pixel_accuracy": self.pixel_accuracy,
            "images": self.images,
            "reduced_miou": self.reduced_miou,
            "boundary_miou": self.boundary_miou,
            "boundary_iou": self.boundary_iou,
        }
        return {name: value for name, value in scores.items() if value is not None}


def _mean(values: Iterable[float | None]) -> float:
    """The mean of the values that are not None; 0 if there are none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / max(1, len(known))


class SegmentationMetrics:
    """Accumulates a confusion matrix. With torchrun :meth:`result` adds up all processes, all of which must call it."""

    def __init__(
        self, class_names: Sequence[str], device: torch.device | str = "cpu", *, boundary: float | None = None
    ) -> None:
        """``boundary``: also the boundary IoU, within this share of the image's diagonal."""
        self._names = tuple(class_names)
        # Here, as torchmetrics takes more than a second to import, and most commands evaluate nothing.
        from torchmetrics import SumMetric
        from torchmetrics.classification import MulticlassConfusionMatrix

        from dnas.training.boundary import BoundaryIoU

        matrix = MulticlassConfusionMatrix(len(self._names), ignore_index=IGNORE_LABEL, validate_args=False)
        self._matrix = matrix.to(device)
        self._images = SumMetric(nan_strategy="disable").to(device)  # looking for NaN would wait for the device
        self._boundary = None if boundary is None else BoundaryIoU(len(self._names), boundary).to(device)
        # torchmetrics warns about a result without data, which a process without a share of the images would have.
        self._matrix.update(torch.zeros(1, device=device).long(), torch.full((1,), IGNORE_LABEL, device=device))
        self._images.update(0)
        if self._boundary is not None:
            nothing = torch.full((1, 1, 1), IGNORE_LABEL, device=device)
            self._boundary.update(nothing, nothing)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch: ``predictions`` are logits (N, classes, h, w), resized to ``labels`` (N, H, W), or classes.

        Labels are class indices or 255. Raises :class:`UserError` if the logits have another number of classes.
        """
        if predictions.ndim == 4:
            if predictions.shape[1] != len(self._names):
                raise UserError(
                    f"the network predicts {predictions.shape[1]} classes, the dataset has {len(self._names)}: "
                    "evaluate it on the dataset that it was trained for"
                )
            size = (labels.shape[-2], labels.shape[-1])
            predictions = resize_logits(predictions, size).argmax(dim=1)
        with order_does_not_matter():
            self._matrix.update(predictions, labels)
            if self._boundary is not None:
                self._boundary.update(predictions, labels)
        self._images.update(labels.new_full((), labels.shape[0]))  # filled on the device, without a copy

    def result(self) -> Evaluation:
        """The scores so far; all 0 if no pixel was valid."""
        matrix = self._matrix.compute().double().cpu()
        images = int(self._images.compute())
        # Rows are the truth, columns the prediction.
        hits = matrix.diagonal()
        union = matrix.sum(dim=0) + matrix.sum(dim=1) - hits
        present = union > 0
        iou = torch.where(present, hits / union.clamp(min=1), 0.0)
        values = zip(self._names, iou.tolist(), present.tolist(), strict=True)
        return Evaluation(
            miou=float(iou.sum() / present.sum().clamp(min=1)),
            iou={name: value if occurs else None for name, value, occurs in values},
            pixel_accuracy=float(hits.sum() / matrix.sum().clamp(min=1)),
            images=images,
            boundary_iou=self._boundary_iou(),
            confusion=tuple(tuple(int(count) for count in row) for row in matrix.tolist()),
        )

    def _boundary_iou(self) -> dict[str, float | None] | None:
        if self._boundary is None:
            return None
        values: list[float] = self._boundary.compute().tolist()
        return {name: None if math.isnan(value) else value for name, value in zip(self._names, values, strict=True)}


def evaluate(
    network: nn.Module,
    dataset: SegmentationDataset,
    augmentation: AugmentationConfig,
    *,
    indices: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    precision: Precision = "auto",
    workers: int = 0,
    channels_last: bool = False,
    inference: InferenceConfig | None = None,
    boundary: float | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score ``network`` on the images ``indices`` of ``dataset``, by default all, at the full size of their labels.

    The logits are upsampled bilinearly to the label's size. Images may have different sizes: consecutive ones of equal
    size form batches of up to ``batch_size``. Of ``augmentation`` only the normalisation is used. The network is moved
    to ``device`` and keeps its mode. With several processes each scores every ``world``-th image.

    ``inference``: another input size than that of the labels, several scales, mirrored images, sliding windows.
    ``boundary``: also the boundary IoU, within this share of the image's diagonal. Raises :class:`UserError` for an
    empty dataset, one without a labelled pixel, and a network of another number of classes.
    """
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: the split {dataset.split} has no images to evaluate on")
    device = torch.device(device)
    progress = progress or NoProgress()
    options = inference or InferenceConfig()
    metrics = SegmentationMetrics(dataset.labels.names, device, boundary=boundary)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    mode = network.training
    network.to(device).eval()
    images = EvaluationImages(
        dataset,
        augmentation,
        (range(len(dataset)) if indices is None else indices)[rank::world],
        device,
        batch_size=batch_size,
        image_size=options.input_size,
        layout=layout,
        workers=workers,
    )
    channels = input_channels(network)

    def forward(images: Tensor) -> Tensor:
        if images.shape[1] != channels:
            raise UserError(
                f"{dataset.name}: images of {images.shape[1]} channels, the network takes {channels}; use data with "
                "the channels that it was trained for"
            )
        with autocast(device, precision):
            logits: Tensor = network(images)
        return logits.float()

    try:
        with torch.no_grad():
            for batch, labels in images:
                scores = predict(forward, batch, (labels.shape[-2], labels.shape[-1]), options)
                metrics.update(scores, labels)
                progress.advance(len(batch))
        return _require_labels(metrics.result(), dataset)
    finally:
        network.train(mode)


def _require_labels(found: Evaluation, dataset: SegmentationDataset) -> Evaluation:
    """``found``, unless no class occurs; scores of ignored pixels would be 0 whatever the network predicts."""
    if found.images and all(value is None for value in found.iou.values()):
        raise UserError(
            f"{dataset.name} {dataset.split}: no pixel of the {found.images} images has a class, all are ignored, so "
            "that there is nothing to score; see dnas data check"
        )
    return found
