"""Optimisers of weights: SGD with momentum, as in the papers, and AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dnas.training.config import RetrainConfig


class HasParameterGroups(Protocol):
    """An optimiser, or accelerate's wrapper around one."""

    param_groups: list[dict[str, Any]]


def make_sgd(
    network: nn.Module,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay_norms_and_biases: bool = False,
    leave_out: Iterable[nn.Parameter] = (),
    fused: bool = False,
) -> torch.optim.SGD:
    """SGD over the trainable parameters of ``network``, except ``leave_out``, which another optimiser trains.

    Unless ``decay_norms_and_biases``, parameters of at most one dimension (those of normalisations, and biases) are not
    decayed, as in RegSeg for BatchNorm (regseg_v3, section 4.2). ``fused`` updates in one pass over the memory.
    """
    groups = _groups(network, weight_decay, decay_norms_and_biases, leave_out)
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=fused or None)
    if fused and momentum:
        # The fused step needs all momenta or none, but some weights get their first gradient later than others.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_adamw(
    network: nn.Module, *, learning_rate: float, weight_decay: float, decay_norms_and_biases: bool = False
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``network``, with the decay of :func:`make_sgd`."""
    return torch.optim.AdamW(_groups(network, weight_decay, decay_norms_and_biases), lr=learning_rate)


def make_optimizer(network: nn.Module, config: RetrainConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` names, over the trainable parameters of ``network``."""
    if config.optimizer == "adamw":
        return make_adamw(
            network,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            decay_norms_and_biases=config.decay_norms_and_biases,
        )
    return make_sgd(
        network,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_norms_and_biases=config.decay_norms_and_biases,
    )


def _groups(
    network: nn.Module, weight_decay: float, decay_norms_and_biases: bool, leave_out: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    foreign = {id(parameter) for parameter in leave_out}
    trainable = [
        parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in foreign
    ]
    decayed = [parameter for parameter in trainable if decay_norms_and_biases or parameter.ndim > 1]
    others = [parameter for parameter in trainable if not decay_norms_and_biases and parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


@contextlib.contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Context in which the parameters require no gradients; afterwards all of them require gradients."""
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def set_learning_rate(optimizer: HasParameterGroups, learning_rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def check_loaded(optimizer: Any) -> None:
    """Raise :class:`ValueError` if a loaded state does not fit the parameters, which torch does not check."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                    raise ValueError(
                        f"{name} of the optimiser is {tuple(value.shape)}, its parameter {tuple(parameter.shape)}"
                    )
