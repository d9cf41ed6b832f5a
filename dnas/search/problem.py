"""Protocols of search problems: weights, architecture parameters, forward passes and latency."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """A forward pass of an architecture, with the sample that the problem runs.

    ``count``: number of passes that are merged into this one; its loss has this weight. ``key``: passes with equal keys
    run the same kernels, whatever the values of their sample's tensors; None: it depends on what was drawn. A sample
    with a key consists of tensors in tuples, mappings and dataclasses.
    """

    architecture: str
    sample: Any
    count: int = 1
    key: Hashable = None


class SearchProblem(Protocol):
    """A network with weights and architecture parameters, and the forward passes that train them.

    Passes are sampled from the given generator only, so that all processes, and a resumed run, sample the same. The
    parameters of ``architecture`` are named ``ARCHITECTURE.KIND``, optionally with a suffix; gradient norms are logged
    by architecture and kind.
    """

    weights: nn.Module
    architecture: nn.Module

    def begin_epoch(self, progress: float) -> None:
        """Called before every epoch, also the first after a resumption.

        ``progress`` is the share of the search (without pretraining) that is done, from 0 to below 1. Only it, the
        weights and the architecture parameters may have an influence.
        """

    def weight_passes(self, phase: str, generator: torch.Generator) -> Sequence[Pass]:
        """The passes whose mean loss trains the weights in one step of ``phase``.

        In a bilevel search their samples carry no gradient to the architecture parameters.
        """

    def validation_passes(self) -> Mapping[str, Pass]:
        """The pass that represents each architecture in its current state."""

    def outputs(self, images: Tensor, forward: Pass) -> Mapping[str, Tensor]:
        """Images (N, 3, H, W) -> named logits (N, classes, h, w) of any size; the loss is the mean over all outputs."""

    def latency(self, forward: Pass) -> Tensor | None:
        """The expected latency in ms for the latency term of the loss; None: no such term."""

    def monitor(self) -> dict[str, Any]:
        """Statistics of the architecture parameters for the log of an epoch."""

    def logits(self) -> dict[str, Tensor]:
        """The architecture parameters for derivation, named ``ARCHITECTURE.TABLE``."""


@runtime_checkable
class OneShotProblem(SearchProblem, Protocol):
    """A problem whose passes run sampled networks, of which the best one is selected afterwards.

    ``weight_passes`` gives the networks of one step. Where they distil in place, the first one teaches the others. Only
    those parameters of ``architecture`` that require a gradient, such as dilation rates, are trained, with the weights.
    """

    def one_shot(self) -> bool:
        """True; tells such a problem from the others."""

    def project(self) -> None:
        """Project the architecture parameters onto their bounds; called after every step that trains any."""


@runtime_checkable
class BilevelProblem(SearchProblem, Protocol):
    """A problem whose architecture parameters are trained on other images than the weights are."""

    def architecture_passes(self, generator: torch.Generator) -> Sequence[Pass]:
        """The passes whose losses and latencies train the architecture parameters in one step."""


@runtime_checkable
class HasKinds(Protocol):
    """What a bilevel problem may have: learning rates by kind of parameter, and bounds of the parameters."""

    def learning_rate_factors(self) -> Mapping[str, float]:
        """A factor of the architecture's learning rate for every parameter of ``architecture``, by its name."""

    def project(self) -> None:
        """Project the architecture parameters onto their bounds; called after every step."""


@runtime_checkable
class JointProblem(SearchProblem, Protocol):
    """A problem whose architecture parameters are trained together with the weights, in the same passes."""

    def project(self) -> None:
        """Project the architecture parameters onto their bounds; called after every step."""
