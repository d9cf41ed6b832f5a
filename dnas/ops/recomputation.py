"""Activation checkpointing: parts of a network run again in the backward pass instead of storing activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *maps: Tensor, networks: Sequence[nn.Module]) -> T:
    """``function(*maps)`` with activation checkpointing: only ``maps`` are stored for the backward pass.

    ``networks`` are the modules that it runs; their BatchNorms update running statistics only in the first run.
    """
    result: T = checkpoint(
        function,
        *maps,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), _restore_statistics(networks)),
    )
    return result


@contextlib.contextmanager
def _restore_statistics(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Restore running statistics at exit. (Norms that do not track them save other tensors for backward.)"""
    norms = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    buffers = [buffer for norm in norms if norm.track_running_stats for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # checkpoint ends the second run by an exception when all needed tensors are recomputed
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
