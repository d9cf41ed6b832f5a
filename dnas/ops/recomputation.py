"""Parts of a network that run a second time in the backward pass, so that nothing within is kept for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *maps: Tensor, networks: Sequence[nn.Module]) -> T:
    """``function(*maps)``, of which the backward pass finds only the maps.

    ``networks`` are what it runs: their norms take the maps into their running statistics in the first run only.
    """
    result: T = checkpoint(
        function,
        *maps,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), _same_statistics_after(networks)),
    )
    return result


@contextlib.contextmanager
def _same_statistics_after(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Give norms that track statistics those back that they had; (untracked, they would save other tensors)."""
    norms = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    buffers = [buffer for norm in norms if norm.track_running_stats for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # the second run is left by an exception, once it has made all that the backward pass reads
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
