"""Freezing the BatchNorms of a network."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def frozen_norms(network: nn.Module) -> tuple[nn.Module, ...]:
    """The BatchNorms of ``network``; their scales and shifts are not trained any more.

    Their statistics stay as they are while the modules are in evaluation mode: :func:`keep_frozen`.
    """
    norms = tuple(module for module in network.modules() if isinstance(module, _BatchNorm))
    for norm in norms:
        norm.requires_grad_(False)
    return norms


def keep_frozen(norms: tuple[nn.Module, ...]) -> None:
    """Put ``norms`` into evaluation mode; to be called after the network is put into training mode."""
    for norm in norms:
        norm.eval()
