"""The exponential moving average of a network's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float, warm_up: bool = True) -> AveragedModel:
    """A copy of ``network`` that ``update_parameters`` moves towards it, buffers included.

    An update keeps the share ``decay`` of the average. With ``warm_up`` the n-th one keeps
    min(decay, (1 + n) / (10 + n)), so that a short training forgets its initial weights (as TensorFlow's
    ``num_updates``).
    """

    @torch.no_grad()
    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = int(updates)
        kept = min(decay, (1 + n) / (10 + n)) if warm_up else decay
        for mine, other in zip(averaged, current, strict=True):
            if mine.is_floating_point():
                mine.lerp_(other.to(mine.dtype), 1 - kept)
            else:
                mine.copy_(other)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)
