"""BatchNorm statistics of a supernet: frozen during the search, recalibrated before validation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from dnas.data import AugmentationConfig, SegmentationDataset, evenly_spaced
from dnas.data.evaluation import EvaluationImages

T = TypeVar("T")

CALIBRATION_BATCHES = 8
"""Number of batches on which BatchNorm statistics are recalibrated."""


def calibration_images(
    dataset: SegmentationDataset,
    augmentation: AugmentationConfig,
    batch_size: int,
    indices: Sequence[int],
    device: torch.device,
    *,
    layout: torch.memory_format = torch.contiguous_format,
    workers: int = 0,
    keep: int = 0,
) -> EvaluationImages:
    """Up to 8 batches of full images, evenly spaced over the images ``indices`` of ``dataset``."""
    # Full batches only: in a last batch of one image the coarsest map may be a single value, without variance.
    count = min(len(indices) // batch_size, CALIBRATION_BATCHES) * batch_size
    return EvaluationImages(
        dataset,
        augmentation,
        [indices[i] for i in evenly_spaced(len(indices), count)],
        device,
        batch_size=batch_size,
        layout=layout,
        workers=workers,
        keep=keep,
    )


@contextlib.contextmanager
def freeze_bn_stats(network: nn.Module) -> Iterator[None]:
    """Context in which training passes use batch statistics as usual, but do not update running statistics.

    :func:`recalibrate_bn` replaces the running statistics before they are used, so updating them would waste time.
    """
    tracking = [
        module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    ]
    try:
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


@torch.no_grad()
def recalibrate_bn(network: nn.Module, forward: Callable[[T], object], batches: Iterable[T]) -> None:
    """Replace the running statistics of every BatchNorm in ``network`` by their mean over ``batches``.

    ``forward`` runs the network on a batch. Running statistics collected over several architectures and widths fit none
    of them, so those of the architecture to be validated are measured first. Training uses batch statistics and is not
    affected. The network is left in evaluation mode.

    Like ``torch.optim.swa_utils.update_bn``, but with a custom ``forward``, and the momenta are restored after an
    error, too.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        network.train()
        for batch in batches:
            forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
