"""Mean intersection over union, from one confusion matrix over all pixels of all images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from dnas.data import IGNORE_LABEL, AugmentationConfig, Batches, SegmentationDataset, batches, eval_transform
from dnas.errors import UserError
from dnas.progress import NoProgress, Progress
from dnas.training.device import Precision, autocast
from dnas.training.losses import resize_logits


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network on a dataset, as fractions from 0 to 1."""

    miou: float
    """Mean intersection over union of the classes that occur in labels or predictions."""
    iou: dict[str, float | None]
    """Per class; None for a class that occurs in neither."""
    pixel_accuracy: float
    images: int

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return dataclasses.asdict(self)


class SegmentationMetrics:
    """Accumulates a confusion matrix. With torchrun :meth:`result` adds up all processes, all of which must call it."""

    def __init__(self, class_names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self._names = tuple(class_names)
        matrix = MulticlassConfusionMatrix(len(self._names), ignore_index=IGNORE_LABEL, validate_args=False)
        self._matrix = matrix.to(device)
        self._images = SumMetric().to(device)
        # torchmetrics warns about a result without data, which a process without a share of the images would have.
        self._matrix.update(torch.zeros(1, device=device).long(), torch.full((1,), IGNORE_LABEL, device=device))
        self._images.update(0)

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
        self._matrix.update(predictions, labels)
        self._images.update(labels.shape[0])

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
        )


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
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score ``network`` on the images ``indices`` of ``dataset``, by default all, at the full size of their labels.

    The logits are upsampled bilinearly to the label's size. Images may have different sizes: consecutive ones of equal
    size form batches of up to ``batch_size``. Of ``augmentation`` only the normalisation is used. The network is moved
    to ``device`` and keeps its mode. With several processes each scores every ``world``-th image. Raises
    :class:`UserError` for an empty dataset and for a network of another number of classes.
    """
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: the split {dataset.split} has no images to evaluate on")
    device = torch.device(device)
    progress = progress or NoProgress()
    metrics = SegmentationMetrics(dataset.labels.names, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    mode = network.training
    network.to(device).eval()
    share = (range(len(dataset)) if indices is None else indices)[rank::world]
    singles = _one_by_one(dataset, augmentation, share, workers, pin_memory=device.type == "cuda")
    try:
        with torch.no_grad():
            for images, labels in join_sizes(on_device(singles or (), device, layout), batch_size):
                with autocast(device, precision):
                    logits = network(images)
                metrics.update(logits.float(), labels)
                progress.advance(len(images))
        return metrics.result()
    finally:
        network.train(mode)
        if singles is not None:
            singles.close()


def _one_by_one(
    dataset: SegmentationDataset, augmentation: AugmentationConfig, share: Sequence[int], workers: int, pin_memory: bool
) -> Batches | None:
    """Batches of one image each, in order; None if there are more processes than images and this one has none."""
    if not share:
        return None
    return batches(
        dataset,
        eval_transform(augmentation),
        batch_size=1,
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
        indices=share,
        workers=workers,
        pin_memory=pin_memory,
    )


def on_device(
    singles: Iterable[tuple[Tensor, Tensor]], device: torch.device, layout: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, 3, H, W) in the memory format ``layout`` and labels on the device.

    Before they are joined: pinned memory is copied without waiting for it, and joined images are no longer pinned.
    """
    for images, labels in singles:
        moved = images.to(device, non_blocking=True, memory_format=layout)
        yield moved, labels.to(device, non_blocking=True)


def join_sizes(singles: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Join batches of one image into batches of up to ``batch_size`` consecutive images of equal size."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for images, labels in singles:
        if waiting and (len(waiting) == batch_size or waiting[0][0].shape != images.shape):
            yield _joined(waiting)
            waiting = []
        waiting.append((images, labels))
    if waiting:
        yield _joined(waiting)


def _joined(waiting: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in waiting]), torch.cat([labels for _, labels in waiting])
