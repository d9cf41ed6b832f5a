"""BatchNorm statistics of one way to run a shared network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@contextlib.contextmanager
def untracked_norms(network: nn.Module) -> Iterator[None]:
    """Within, training passes leave the running statistics alone, which :func:`calibrate_norms` measures when needed.

    Hundreds of norms a pass have less to do, and passes side by side nothing in common that depends on their order.
    """
    norms = [
        module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
    ]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


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
