"""BatchNorm statistics of a shared network: not updated while searching, recalibrated before validation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@contextlib.contextmanager
def freeze_bn_stats(network: nn.Module) -> Iterator[None]:
    """Within, training passes normalise by the batch as usual but do not update the running statistics.

    Nothing reads them before :func:`recalibrate_bn` replaces them, and updating hundreds of layers takes time.
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

    ``forward`` runs the network on a batch. Running statistics of a network that several architectures and widths
    share fit none of them, so those of the architecture to be validated are measured first. Only validation uses them:
    training normalises by the batch. The network is left in evaluation mode.

    This is ``torch.optim.swa_utils.update_bn`` for a ``forward`` that is not the module's own, and it also restores the
    momenta after an error.
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
