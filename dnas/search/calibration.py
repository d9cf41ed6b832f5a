"""BatchNorm statistics of one way to run a shared network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@torch.no_grad()
def calibrate_norms(network: nn.Module, forward: Callable[[T], object], batches: Iterable[T]) -> None:
    """Set the running statistics of every BatchNorm in ``network`` to their mean over ``batches``.

    ``forward`` runs the network on a batch. A network whose weights are shared by several architectures and widths
    keeps running statistics that fit none of them, so those of the one to be validated are measured first. They serve
    validation only: training normalises by the batch. The network is left in evaluation mode.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        network.train()
        for batch in batches:
            forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
