"""The mIoU of a search problem's passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dnas.data import IGNORE_LABEL, AugmentationConfig, SegmentationDataset, batches, eval_transform
from dnas.training.metrics import SegmentationMetrics, join_sizes, on_device


@torch.no_grad()
def miou_of_outputs(
    outputs: Callable[[Tensor], Mapping[str, Tensor]],
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
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The mIoU of each named output, logits (N, classes, h, w), on the images ``indices`` of ``dataset``.

    ``outputs`` is given images on the device, in the memory format ``layout``. With several processes each scores every
    ``world``-th image. ``workers``: processes that decode images ahead. ``advance`` is called after every batch.
    """
    # A process without images runs the first one, with all labels ignored: the metrics synchronise all processes.
    share = indices[rank::world]
    singles = batches(
        dataset,
        eval_transform(augmentation),
        batch_size=1,  # images may differ in size
        seed=0,
        epoch=0,
        shuffle=False,
        drop_last=False,
        indices=share or indices[:1],
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    metrics: dict[str, SegmentationMetrics] = {}
    try:
        for images, labels in join_sizes(on_device(singles, device, layout), batch_size):
            truth = labels if share else torch.full_like(labels, IGNORE_LABEL)
            for name, logits in outputs(images).items():
                if name not in metrics:
                    metrics[name] = SegmentationMetrics(dataset.labels.names, device)
                metrics[name].update(logits.float(), truth)
            advance()
    finally:
        singles.close()
    return {name: metric.result().miou for name, metric in metrics.items()}
