"""The optimiser of the papers: SGD with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn


class HasParameterGroups(Protocol):
    """An optimiser, or what accelerate wraps around one."""

    param_groups: list[dict[str, Any]]


def make_sgd(
    network: nn.Module,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay_norms_and_biases: bool = False,
    leave_out: Iterable[nn.Parameter] = (),
) -> torch.optim.SGD:
    """SGD over the trainable parameters of ``network`` but those to ``leave_out``, which another optimiser trains.

    Unless ``decay_norms_and_biases``, parameters of at most one dimension (those of normalisations, and biases) are not
    decayed, as RegSeg does for BatchNorm (regseg_v3, section 4.2).
    """
    foreign = {id(parameter) for parameter in leave_out}
    trainable = [
        parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in foreign
    ]
    decayed = [parameter for parameter in trainable if decay_norms_and_biases or parameter.ndim > 1]
    others = [parameter for parameter in trainable if not decay_norms_and_biases and parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.SGD([group for group in groups if group["params"]], lr=learning_rate, momentum=momentum)


def set_learning_rate(optimizer: HasParameterGroups, learning_rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
