"""The mIoU of a search problem's passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dnas.data import IGNORE_LABEL, AugmentationConfig, SegmentationDataset
from dnas.data.evaluation import EvaluationImages
from dnas.training.metrics import SegmentationMetrics


class ScoredImages:
    """The images on which passes are scored, decoded once for all of them as far as memory allows.

    With several processes each scores every ``world``-th image.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        augmentation: AugmentationConfig,
        indices: Sequence[int],
        device: torch.device,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        layout: torch.memory_format = torch.contiguous_format,
        keep: int = 0,
    ) -> None:
        """``indices``: of the images of ``dataset``; the rest as for :class:`EvaluationImages`."""
        share = indices[rank::world]
        # A process without images runs the first one, with all labels ignored: the metrics synchronise all processes.
        self._is_empty = not share
        self._names, self._device = dataset.labels.names, device
        self._images = EvaluationImages(
            dataset,
            augmentation,
            share or indices[:1],
            device,
            batch_size=batch_size,
            workers=workers,
            layout=layout,
            keep=keep,
        )

    @torch.no_grad()
    def miou(
        self, outputs: Callable[[Tensor], Mapping[str, Tensor]], advance: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """The mIoU of each named output, logits (N, classes, h, w), that ``outputs`` returns for images on the device.

        ``advance`` is called after every batch.
        """
        metrics: dict[str, SegmentationMetrics] = {}
        for images, labels in self._images:
            truth = torch.full_like(labels, IGNORE_LABEL) if self._is_empty else labels
            for name, logits in outputs(images).items():
                if name not in metrics:
                    metrics[name] = SegmentationMetrics(self._names, self._device)
                metrics[name].update(logits.float(), truth)
            advance()
        return {name: metric.result().miou for name, metric in metrics.items()}
